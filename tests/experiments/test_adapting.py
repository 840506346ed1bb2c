"""Training few parameters as a user does: what is trained and saved, and every script reads the merged model."""

import dataclasses
import itertools
import re
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from small_runs import changed, interrupt_after

import vidjax
from vidjax import cli
from vidjax.convert import save_pretrained
from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.errors import UserError
from vidjax.layers import low_rank
from vidjax.layers.adapters import is_added
from vidjax.models import create_model
from vidjax.runs import head_start, weights
from vidjax.runs.adapting import AdaptConfig
from vidjax.training.checkpoint import load_variables
from vidjax.training.loop import LoopConfig
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import convert_weights
import finetune
from small_models import perturbed

DATA = LabelledDataConfig(
    frames=2, size=16, short_side=16, stride=4, workers=1, augment=AugmentConfig(crop="center"), train_examples=64,
    validation="synthetic:moving_shapes", validation_examples=24,
)  # fmt: skip
SMALL = finetune.Config(
    model="videomae_tiny", init_from="replaced below", data=DATA, batch_size=16, steps=4, mixup=0.0, cutmix=0.0,
    adapt=AdaptConfig(method="dora", rank=2, targets=("block_[01]/attention/value", "fc1")),
    optim=OptimizerConfig(learning_rate=3e-2, warmup_epochs=0, layer_decay=0.75),
    loop=LoopConfig(log_every=1, save_every=2, evaluate_every=4),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_clips():
    """Fewer batches are measured than those after which a run is interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_start, "CLIPS", 32)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A classifier of other classes."""
    model = create_model("videomae_tiny", num_classes=5, num_frames=2, image_size=16)
    path = tmp_path_factory.mktemp("base") / "base"
    save_pretrained(path, model, perturbed(model))
    return path


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run that was interrupted and resumed."""
    config = changed(SMALL, workdir=str(tmp_path_factory.mktemp("run") / "run"), init_from=str(base))
    interrupt_after(3, finetune.main, config)
    return Path(config.workdir), finetune.main(config)


def test_a_run_saves_the_few_parameters_alone_and_loads_as_the_merged_model(run, base):
    workdir, numbers = run
    few, step = load_variables(workdir)
    names = {path.rpartition("/")[2] for path in few}
    assert step == 4 and names == {*low_rank.NAMES, "kernel", "bias"}
    assert {path for path in few if "lora" not in path} == {"params/head/kernel", "params/head/bias"}
    assert sum("lora_a" in path for path in few) == 2 + 4  # two values, four MLPs
    model, variables = vidjax.load_pretrained(workdir, which="last")
    merged = flatten_dict(variables["params"], sep="/")
    _, before = vidjax.load_pretrained(base)
    before = flatten_dict(before["params"], sep="/")
    changed_paths = {path for path in merged if not np.array_equal(merged[path], before[path])}
    adapted = {path.removeprefix("params/").replace("lora_a", "kernel") for path in few if path.endswith("lora_a")}
    assert changed_paths == adapted | {"head/kernel", "head/bias"} and model.num_classes == 8
    assert numbers["top1"] == [e["evaluation/top1"] for e in read_metrics(workdir) if "evaluation/top1" in e][-1]


@pytest.mark.long
def test_a_resumed_run_equals_an_uninterrupted_one(run, base, tmp_path, capsys):
    finetune.main(changed(SMALL, workdir=str(tmp_path / "run"), init_from=str(base)))
    _, variables = vidjax.load_pretrained(run[0], verbose=False)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert f"videomae_tiny: {count:,} parameters" in capsys.readouterr().out  # those of the model, not only the few
    resumed, whole = load_variables(run[0])[0], load_variables(tmp_path / "run")[0]
    for path, value in whole.items():
        np.testing.assert_allclose(resumed[path], value, rtol=0, atol=1e-6)


def test_the_head_learns_as_if_what_it_sees_at_the_start_were_standardised(base, tmp_path, monkeypatch):
    measure, seen = finetune.measure_head, []

    def measured(run, state):
        state = measure(run, state)
        batches = itertools.islice(run.labelled_batches(0), 2)
        seen.append((np.concatenate([batch["video"] for batch in batches]), jax.device_get(state.opt_state[:2])))
        return state

    monkeypatch.setattr(finetune, "measure_head", measured)
    config = changed(SMALL, workdir=str(tmp_path / "run"), init_from=str(base), steps=1, data__validation=None)
    finetune.main(config)
    [(video, (mean, std))] = seen
    model, variables = vidjax.load_pretrained(base, verbose=False)
    features = jax.jit(partial(model.apply, method="embed"))(variables, model.card.preprocess(video))
    assert video.shape[0] == 32 and mean.shape == (96,)
    np.testing.assert_allclose(mean, features.mean(axis=0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(std, np.sqrt(features.var(axis=0) + 1e-6), rtol=1e-4)


def test_peft_gets_the_few_parameters_of_a_run(run, base, tmp_path):
    convert_weights.main(convert_weights.Config(str(run[0]), str(tmp_path / "adapter"), layout="peft"))
    model, expected = vidjax.load_pretrained(run[0])
    _, variables = vidjax.load_pretrained(base, num_classes=8)
    loaded = vidjax.load_adapter(tmp_path / "adapter", model, variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), loaded, expected)


def test_a_base_that_has_changed_is_an_error(run, base, tmp_path):
    record = (run[0] / "base.json").read_text()
    other = create_model("videomae_tiny", num_classes=5, num_frames=2, image_size=16)
    variables = jax.tree.map(lambda leaf: leaf * np.float32(1.001), perturbed(other))
    save_pretrained(tmp_path / "other", other, variables)
    try:
        (run[0] / "base.json").write_text(record.replace(str(base), str(tmp_path / "other")))
        with pytest.raises(ValueError, match=r"other no longer has the weights that .* adapts: restore them"):
            vidjax.load_pretrained(run[0])
    finally:
        (run[0] / "base.json").write_text(record)


WRONG = {
    "--adapt lora": "adapt lora needs the weights that it adapts: give --init_from",
    "--adapt.frozen_type bfloat16": "adapt.frozen_type is of few parameters: give --adapt too, such as --adapt lora",
    "--adapt lora --init_from BASE --distributed": "adapt lora trains in one process: omit --distributed",
    "--adapt bias --init_from BASE --tune partial": "adapt bias chooses the trained parameters itself: omit --tune",
    "--adapt lora --init_from BASE --adapt.targets qurey": "adapt.targets: 'qurey' meets no kernel of the model: they "
    "are in fc1, fc2, head, key, out, patch_embedding, query, value",
    "--adapt lora --init_from BASE --adapt.also head tail": "adapt.also: 'tail' meets no parameter of the model",
    "--adapt aim --init_from BASE": "aim does not fit this VideoMAE: choose adapter or adaptformer or prompt, or an "
    "image tower such as vit_base_16",
    "--adapt adaptformer --init_from BASE --adapt.alpha 0.1": "adapt.alpha is for LoRA and DoRA, not for adaptformer",
    "--adapt prompt --init_from BASE --model r3d_tiny": "adapt prompt: the blocks of r3d_tiny have no place for it: "
    "use --adapt lora, which any model can, or a model of ViT, VideoMAE, ViViT or TimeSformer",
    "--adapt lora --init_from PRETRAINED": "does not have head_norm/.*, which would stay as it was initialised: train "
    "it too, with --adapt.also head head_norm",
}


@pytest.mark.parametrize("flags", WRONG)
def test_contradictions_are_one_line(flags, base, tmp_path, capsys):
    if "PRETRAINED" in flags:
        model = create_model("videomae_tiny_pretrain", num_frames=2, image_size=16)
        save_pretrained(tmp_path / "pretrained", model, perturbed(model))
    argv = flags.replace("BASE", str(base)).replace("PRETRAINED", str(tmp_path / "pretrained")).split()
    small = [
        "--model", "videomae_tiny", "--data.frames", "2", "--data.size", "16", "--data.train_examples", "16",
        "--workdir", str(tmp_path / "run"),
    ]  # fmt: skip
    with pytest.raises((ValueError, SystemExit)) as stopped:
        finetune.main(cli.parse(finetune.Config, finetune.RECIPES, finetune.DATA_FLAG, [*small, *argv]))
    assert re.search(WRONG[flags], f"{stopped.value} {capsys.readouterr().err}")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_run_with_adapters_saves_them_alone_and_every_script_loads_the_whole_model(base, tmp_path, capsys):
    adapt = AdaptConfig(method="adaptformer", rank=2)
    config = changed(SMALL, adapt=adapt, workdir=str(tmp_path / "run"), init_from=str(base))
    interrupt_after(3, finetune.main, config)
    finetune.main(config)
    trained = {path.removeprefix("params/"): value for path, value in load_variables(tmp_path / "run")[0].items()}
    assert {path for path in trained if not is_added(path)} == {"head/kernel", "head/bias"}
    assert sum(map(is_added, trained)) == 4 * 4 and all(np.any(value) for value in trained.values())
    count = sum(value.size for value in trained.values())
    assert f"adaptformer: {count:,} parameters" in capsys.readouterr().out

    model, variables = vidjax.load_pretrained(tmp_path / "run", which="last")
    assert model.adapter == adapt.adapter
    loaded = flatten_dict(variables["params"], sep="/")
    _, before = vidjax.load_pretrained(base)
    for path, value in (flatten_dict(before["params"], sep="/") | trained).items():
        np.testing.assert_array_equal(loaded[path], value)

    convert_weights.main(convert_weights.Config(str(tmp_path / "run"), str(tmp_path / "ours"), layout="vidjax"))
    again, copied = vidjax.load_pretrained(tmp_path / "ours")
    assert again.adapter == adapt.adapter
    jax.tree.map(np.testing.assert_array_equal, copied, vidjax.load_pretrained(tmp_path / "run")[1])
    for layout, problem in {
        "transformers": "has no entry for transformer/block_0/mlp_adapter/.*: choose another layout, such as vidjax",
        "peft": "has trained neither LoRA nor DoRA",
    }.items():
        with pytest.raises(UserError, match=problem):
            convert_weights.main(convert_weights.Config(str(tmp_path / "run"), str(tmp_path / layout), layout=layout))
        assert not (tmp_path / layout).exists()
    with pytest.raises(UserError, match="run already has adapters: adapt its base, or train it whole"):
        finetune.main(changed(config, workdir=str(tmp_path / "second"), init_from=str(tmp_path / "run")))

    again = finetune.make_model(changed(config, init_from=str(tmp_path / "run"), adapt=AdaptConfig()), ("a", "b", "c"))
    assert again.adapter == adapt.adapter  # which a run that starts from this one keeps
    new = jax.jit(again.init)(jax.random.key(5), jnp.zeros((1, again.num_frames, *2 * (again.image_size,), 3)))
    started = weights.start_classifier(tmp_path / "run", again, new, keep_head=False)
    kept, own = (tree["params"]["transformer"]["block_0"]["mlp_adapter"] for tree in (started, copied))
    jax.tree.map(np.testing.assert_array_equal, kept, own)


@pytest.mark.parametrize("method", ["lora", "dora", "bias"])
def test_the_model_starts_as_its_base_and_no_other_parameter_gets_a_gradient(method):
    model = create_model("videomae_tiny", num_classes=3, num_frames=2, image_size=16)
    variables, adapt = perturbed(model), AdaptConfig(method=method, rank=3)
    few, frozen = adapt.split(variables["params"], jax.random.key(0))
    merged = adapt.merge(few, frozen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=0), merged, variables["params"])
    flat = flatten_dict(few, sep="/")
    blocks, width, head = 4, 96, 96 * 3 + 3
    per_block = {"lora": 2 * 2 * 3 * width, "dora": 2 * (2 * 3 + 1) * width, "bias": (2 + 1 + 4 + 1 + 2) * width}
    extra = {"bias": 2 * width, "lora": 0, "dora": 0}  # of the patch embedding and the norm
    count = blocks * per_block[method] + extra[method] + head
    assert sum(leaf.size for leaf in flat.values()) == count


def test_frozen_kernels_are_kept_in_bfloat16():
    model = create_model("videomae_tiny", num_classes=3, num_frames=2, image_size=16)
    params, adapt = perturbed(model)["params"], AdaptConfig(method="lora", rank=3, frozen_type="bfloat16")
    few, frozen = adapt.split(params, jax.random.key(0))
    whole = AdaptConfig(method="lora", rank=3).split(params, jax.random.key(0))[1]
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(frozen)) < 0.51 * sum(x.nbytes for x in jax.tree.leaves(whole))
    for before, after in zip(jax.tree.leaves(whole), jax.tree.leaves(frozen), strict=True):
        np.testing.assert_allclose(np.asarray(after, np.float32), before, rtol=2**-8 * (before.ndim > 1), atol=0)
    video = np.random.default_rng(0).normal(size=(2, 2, 16, 16, 3)).astype(np.float32)
    exact, rounded = (
        jax.jit(model.clone(dtype=jnp.bfloat16).apply)({"params": adapt.merge(few, each)}, video)
        for each in (whole, frozen)
    )
    np.testing.assert_array_equal(exact, rounded)  # the model rounds them itself


@pytest.mark.long
def test_a_run_on_rounded_parameters_resumes_and_loads_as_what_it_has_trained(base, tmp_path):
    adapt = dataclasses.replace(SMALL.adapt, frozen_type="bfloat16")
    configs = [
        changed(SMALL, workdir=str(tmp_path / name), init_from=str(base), adapt=adapt) for name in ("whole", "killed")
    ]
    finetune.main(configs[0])
    interrupt_after(2, finetune.main, configs[1])
    numbers = finetune.main(configs[1])
    losses = [[e["loss"] for e in read_metrics(config.workdir) if "loss" in e] for config in configs]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    model, variables = vidjax.load_pretrained(configs[1].workdir, which="last")
    after, before = (flatten_dict(each["params"], sep="/") for each in (variables, vidjax.load_pretrained(base)[1]))
    path = next(path for path in after if path.endswith("fc2/kernel"))  # frozen
    kernel, before = after[path], before[path]
    assert 0 < np.abs(kernel - before).max() <= np.abs(before).max() / 256
    assert model.num_classes == 8 and 0 <= numbers["top1"] <= 1


def test_kernels_of_convolutions_are_adapted_too():
    params = {"conv": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 5))}, "head": {"bias": np.zeros(2)}}
    few, frozen = AdaptConfig(method="dora", rank=2, targets=("conv",)).split(params, jax.random.key(0))
    few = jax.tree.map(lambda leaf: leaf + 0.1, few)
    merged = AdaptConfig(method="dora", rank=2).merge(few, frozen)["conv"]["kernel"]
    assert few["conv"]["lora_a"].shape == (18, 2)
    norms = np.sqrt(np.square(merged).reshape(-1, 5).sum(axis=0))
    np.testing.assert_allclose(norms, few["conv"]["lora_magnitude"], rtol=1e-5)
