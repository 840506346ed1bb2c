"""The commands of the pages' shell blocks run, with flags appended that make them small.

`pytest -m pages -n 0 tests/docs` takes several minutes; plain `pytest` only parses the commands. Each page has a new
directory with small videos, where its commands run in order and in this process, so that JAX starts only once. Commands
and pages that do not run are listed in NOT_RUN and PARSED with the reason. `text` blocks are compared with the output
of the program.
"""

import contextlib
import functools
import itertools
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import videos
from blocks import PAGES, ROOT, SHELL, TABLES, blocks_of, call, commands, parse, text_of, write_table
from small_runs import two_devices

from vidjax.data import sources
from vidjax.runs import run
from vidjax.training.metrics import read_metrics

pytestmark = [
    pytest.mark.pages,
    pytest.mark.skipif(jax.device_count() < 8, reason="pages share parameters over eight devices"),
]

# Commands that are only parsed, by their first words, with the reason.
NOT_RUN = {
    "pip install": "needs the package index; .ci/run installs the library in a new environment",
    "pytest": "would run these tests again",
    "tfds build": "downloads the data set",
    "gcloud": "needs Google's cloud",
    "srun": "needs Slurm; test_the_slurm_script runs the block with a stand-in for it",
    "export": "part of the next line",
    "JAX_PROCESS_ID=": "tests/experiments/test_mae_pretrain.py runs the block on two processes",
    "wait": "part of the lines before",
    "python experiments/jepa_pretrain.py": "tests/experiments/test_jepa_pretrain.py trains it",
    "python experiments/token_pretrain.py": "tests/experiments/test_token_pretrain.py trains both",
    "python experiments/text_to_image.py": "tests/experiments/test_text_to_image.py trains it",
    "python experiments/draw.py": "tests/experiments/test_text_to_image.py draws",
    "python experiments/finetune.py demo --model": "only for the next line",
    "python experiments/cross_model.py": "tests/experiments/test_cross_model.py trains it from two such runs",
    "python experiments/filter_web.py": "tests/experiments/test_filter_web.py runs it on scores of its own",
    "python experiments/probe.py": "tests/experiments/test_probe.py runs it",
    "python experiments/evaluate.py --run runs/ft --data.source val.csv --views 10x3": "test_evaluate.py has its rules",
    "python experiments/finetune.py --hashtags": "tests/experiments/test_finetune_hashtags.py runs both",
    "python experiments/evaluate.py --run runs/tags": "on that run",
    "python experiments/embed.py --run runs/b --data.source /videos --out features": "only for the next line",
    "python experiments/localize": "tests/experiments/test_localize.py runs both, and embed.py before them",
    "python experiments/detect": "tests/experiments/test_detect.py runs both",
    "python experiments/ground": "tests/experiments/test_ground.py runs both, and embed.py before them",
    "python experiments/contrastive_pretrain.py": "tests/experiments/test_contrastive_pretrain.py runs it and the next",
    "python experiments/zero_shot.py": "on that run",
    "python experiments/retrieve.py": "on that run",
    "python experiments/embed.py --run runs/c": "on that run",
    "python experiments/video_language_pretrain.py": "tests/experiments/test_video_language_pretrain.py runs both",
    "python experiments/caption.py": "on that run",
    "python experiments/finetune.py demo_attributes": "tests/experiments/test_blip2_pretrain.py runs both",
    "python experiments/blip2_pretrain.py": "on that run",
    "python experiments/vision_language_pretrain.py": "tests/experiments/test_vision_language_pretrain.py trains it",
}

# Pages whose commands are only parsed, with what runs the same scripts. Running these pages too took a third of the
# time of all notebooks, pages and long tests.
PARSED = {
    "README.md": "docs/usage.md has the same ones",
    "docs/index.md": "docs/usage.md, tests/convert/test_hub.py and tests/experiments/test_embed.py",
    "docs/launch.md": "tests/experiments/test_mae_pretrain.py and tests/training/test_sharding.py",
    "docs/reproduce.md": "docs/usage.md and docs/data.md, and tests/experiments/test_compare_models.py",
    "docs/internvideo.md": "docs/usage.md",
    "docs/motion.md": "tests/experiments/test_extract_flow.py, test_finetune_flow.py and test_trajectories.py",
    "docs/results.md": "docs/usage.md",
    "docs/scaling.md": "tests/experiments/test_scaling.py",
    "docs/troubleshooting.md": "docs/usage.md, and the tests of `--dry_run`",
    "docs/formats.md": "tests/experiments/test_benchmark_input.py",
    "docs/speed.md": "tests/benchmark and tests/experiments/test_benchmark*.py, except for `infer`",
}

# Models on the pages, and a tiny model of the same family.
TINY = {
    "r2plus1d_18": "r2plus1d_tiny",
    "videomae_base": "videomae_tiny",
    "videomae_large": "videomae_tiny",
}

# Flags appended to the page's own to make each script small: later flags win.
CLIPS = "--data.frames 4 --data.size 48 --data.short_side 48 --data.workers 1"
LOOP = "--steps 2 --batch_size 8 --loop.log_every 1 --loop.save_every 2 --loop.evaluate_every 2"
SMALL = {
    "check_data.py": "--data.frames 2 --data.size 16 --clips 1 --data.workers 1",
    "convert_weights.py": "",
    "embed.py": "--data.workers 1 --batch_size 8",
    "evaluate.py": "--data.workers 1",
    "finetune.py": f"{CLIPS} {LOOP} --batch_size 32 --data.validation_examples 8",  # 4 micro-batches on 8 devices
    "mae_pretrain.py": f"{CLIPS} {LOOP} --probe_clips 32 --picture_clips 1",
    "merge_labels.py": "",
    "predict.py": "--data.workers 1",
    "visualize.py": "--data.workers 1",
    "write_tfrecords.py": "--workers 1",
}
# Flags in these tables that may override a page's own: sizes only.
SIZES = {"--model", "--data.frames", "--data.size", "--data.short_side"}

# Files that pages assume, and replacements for absolute folders.
MANIFESTS = (
    "train.csv", "val.csv", "k400.csv", "ssv2.csv", "k400/train.csv", "k400/val.csv", "k600/train.csv",
    "k600/val.csv", "k700/train.csv", "k700/val.csv",
)  # fmt: skip
MERGED = {"train.csv": slice(0, 6), "val.csv": slice(6, 8)}
"""Which of the videos the lists of the data sets have that are merged."""
FOLDERS = {r"(^|:)/(videos|records)\b": r"\1\2", "^tfds:ucf101$": "tfds:few_videos"}
# Runs that pages assume, unless one of their commands creates them.
RUNS = {
    "runs/b": "mae_pretrain.py --model videomae_base --data.source /videos --workdir runs/b",
    "runs/ft": "finetune.py --model videomae_base --data.train train.csv --workdir runs/ft",
}
# Printed output that is checked, besides the files.
OUTPUT = {
    "docs/usage.md": ("8 examples, 8 looked at, 0 unreadable", "8 of 8 videos decoded"),
    "docs/data.md": (
        "3 videos of tfds:few_videos",
        "6 training videos of 2 classes",
        "0.667 of the clips from k400.csv",
    ),
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Copies a run of RUNS into the working directory, training it when first used."""
    made = tmp_path_factory.mktemp("trained")

    def get(name):
        if not (made / name).exists():
            start(["python", *shlex.split(f"experiments/{RUNS[name]}")])
            shutil.copytree(name, made / name)
        elif not Path(name).exists():
            shutil.copytree(made / name, name)

    return get


@functools.cache
def few_videos():
    """The builder of a video data set for TFDS, which identifies a class by its name."""
    import tensorflow_datasets as tfds

    class FewVideos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            video = tfds.features.Video(shape=(None, 48, 80, 3), encoding_format="jpeg")
            features = tfds.features.FeaturesDict({"video": video, "label": tfds.features.ClassLabel(names=["a", "b"])})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(5), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"video": videos.numbered(9, first=10 * i), "label": i % 2}

    return FewVideos


@pytest.fixture
def stocked(place, monkeypatch):
    """The working directory, with the manifests that pages name."""
    paths = sorted(path for path in Path("videos").rglob("*.mp4"))
    for name in MANIFESTS:
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        rows = [(os.path.relpath(place / video, place / path.parent), i % 2) for i, video in enumerate(paths)]
        rows = rows[MERGED[path.name]] if path.parent.name else rows
        path.write_text("path,label\n" + "".join(f"{p},{('abseiling', 'air drumming')[c]}\n" for p, c in rows))
    monkeypatch.setenv("TFDS_DATA_DIR", str(place / "tfds"))
    return place


def script_calls(page):
    """The commands of a page that call a script, in order; all others must be in NOT_RUN."""
    for block in blocks_of(page):
        for words in commands(block.text) if block.kind in SHELL else ():
            command = shlex.join(words)
            if not reason(command):
                assert words[0] == "python", f"{block}: {command}\nis neither run nor in NOT_RUN"
                yield words


def test_every_command_in_not_run_is_on_a_page():
    blocks = [block for page in PAGES for block in blocks_of(page) if block.kind in SHELL]
    lines = [shlex.join(words) for block in blocks for words in commands(block.text)]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


def reason(command):
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)


def small(words):
    """The words of a call of a script, with flags appended that make it small."""
    script, *rest = words[1:]
    named, changed = getattr(parse(*words[1:]), "model", None), []
    if named:
        changed += ["--model", named if "tiny" in named else TINY[named]]
    changed += shlex.split(SMALL[Path(script).name])
    given = {word for word in rest if word.startswith("--")}
    taken = {word for word in changed if word.startswith("--")} & given
    assert taken <= SIZES, f"{shlex.join(words)}: {', '.join(taken - SIZES)} must not be changed"
    flags = rest
    for old, new in FOLDERS.items():
        flags = [re.sub(old, new, word) for word in flags]
    return [script, *flags, *changed]


def start(words):
    """Runs a command of a page in this process."""
    words = small(words)
    on_eight = {"--fsdp", "--sequence"} & set(words)
    with contextlib.nullcontext() if on_eight else two_devices():
        call(words)


def made(words):
    """Files and folders that a command creates, by its flags."""
    named = dict(itertools.pairwise(words))
    paths = [named[flag] for flag in ("--out", "--csv", "--json", "--chart", "--workdir") if flag in named]
    if words[1].endswith(("write_tfrecords.py", "convert_weights.py")):
        paths.append(words[3])
    return [Path(re.sub("^/", "", path)) for path in paths]


def files():
    """Modification times of all files in the working directory; None for folders."""
    return {path: path.stat().st_mtime_ns if path.is_file() else None for path in Path.cwd().rglob("*")}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in PARSED])
def test_commands_run(page, stocked, trained, capsys):
    calls = list(script_calls(page))
    text = shlex.join(word for words in calls for word in words)
    for name in RUNS:
        if name in text and f"--workdir {name} " not in f"{text} ":
            trained(name)
    if "tfds:ucf101" in text:
        few_videos()(data_dir="tfds").download_and_prepare()
    for block in blocks_of(page):
        if block.kind in TABLES:
            write_table(block)
    for words in calls:
        before = files()
        start(words)
        after = files()
        if "--dry_run" in words:
            assert after == before, f"{shlex.join(words)}: it wrote files"
        else:
            written = {path for path, when in after.items() if when is not None and before.get(path) != when}
            written |= {folder for path in written for folder in path.parents}
            missing = [path for path in made(words) if Path.cwd() / path not in written]
            assert not missing, f"{shlex.join(words)}: it did not write {missing}"
    out = capsys.readouterr().out
    for sentence in OUTPUT.get(page, ()):
        assert sentence in out, f"{page}: its commands do not print '{sentence}'"


def test_the_slurm_script_starts_processes_that_find_each_other(stocked):
    """The script unchanged, with an `srun` that sets Slurm's variables for two processes and appends flags."""
    (script,) = [block.text for block in blocks_of("docs/launch.md") if "\nsrun " in block.text]
    (words,) = [words[1:] for words in commands(script) if words[0] == "srun"]
    Path("experiments").symlink_to(ROOT / "experiments")
    srun = Path("bin/srun")
    srun.parent.mkdir()
    srun.write_text(
        """#!/bin/bash
        trap 'kill $(jobs -p) 2> /dev/null' EXIT
        SLURM_PROCID=0 SLURM_LOCALID=0 "$@" $MORE &
        SLURM_PROCID=1 SLURM_LOCALID=1 "$@" $MORE &
        wait -n && wait -n"""
    )
    srun.chmod(0o755)
    first = 65536 - 4096  # JAX derives the port from the job's number
    number = next(n for n in random.sample(range(1, 4096), 4095) if is_free(first + n))
    variables = {"SLURM_JOB_ID": str(number), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    variables["PATH"] = os.pathsep.join(
        [str(srun.parent.resolve()), str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    variables |= {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2"}
    few = "--fsdp 4 --steps 1 --probe_clips 0 --picture_clips 0 --workdir run"
    variables["MORE"] = " ".join([*small(words)[len(words) - 1 :], few])
    job = subprocess.Popen(
        ["bash", "-e", "-c", script], env=os.environ | variables, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = job.communicate(timeout=900)
    finally:  # if one process fails, the other waits for it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0, output
    assert "devices   4 x cpu, 2 process(es), mesh data=1 fsdp=4" in output
    assert [entry["step"] for entry in read_metrics(Path("run")) if "loss" in entry] == [1]


def is_free(port):
    with socket.socket() as connection:
        return connection.connect_ex(("localhost", port)) != 0


class Stop(Exception):
    """Ends a run after its first lines are printed."""


def test_text_is_the_output_of_the_program(stocked, monkeypatch, capsys):
    """The pre-training of docs/reproduce.md with as many videos as on the page, up to its first step."""
    ((place, text),) = [
        (i, b) for page in ("docs/reproduce.md",) for i, b in enumerate(blocks_of(page)) if b.kind == "text"
    ]
    examples = int(re.search(r"For ([\d,]+) videos:\n\n```text", text_of(text.page))[1].replace(",", ""))
    (command,) = commands(blocks_of(text.page)[place - 1].text)

    def fit(*args, **kwargs):
        raise Stop

    few = sources.open_source("videos")
    monkeypatch.setattr(sources, "open_source", lambda *_: sources.subset(few, [0] * examples))
    monkeypatch.setattr(run, "fit", fit)
    monkeypatch.setattr(jax, "jit", lambda function, **_: functools.partial(jax.eval_shape, function))  # not computed
    with pytest.raises(Stop):
        call([*command[1:], "--fsdp", "8"])
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in text.text.splitlines() if line not in printed] == []
