"""Describe videos, or answer a question about them: one text for each file, from its central clip.

    python experiments/caption.py --run runs/vl clip.mp4 videos/ --beams 3 --json captions.json
    python experiments/caption.py --run blip_base_caption_coco --tokenizer bert/tokenizer.json \\
        --prompt "a picture of" clip.mp4
    python experiments/caption.py --run Salesforce/blip2-opt-2.7b --question "What is the man doing?" clip.mp4

`--run` is the work directory of a run of video_language_pretrain.py, or of vision_language_pretrain.py with the
objective lm; or a published BLIP, BLIP-2 or InstructBLIP. BLIP's model of questions (`blip_base_vqa_v2`) and BLIP-2
answer, and InstructBLIP needs a question or a prompt, which is its instruction.
A folder selects all videos below it. Clips are sampled and cropped as in training, unless flags such as
`--data.stride 2` are given.

Files that cannot be read are listed on stderr with the reason, and the others are described. The exit status is 0 if
any file could be read, and 2, with a one-line error, if none could or the arguments are invalid.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tyro.conf import Positional

from vidjax import cli, runs
from vidjax.data.config import GivenClipConfig, core_count
from vidjax.errors import UserError
from vidjax.fields import check_values, require_positive
from vidjax.runs.announce import print_notes
from vidjax.runs.captions import caption_writer, instruction_tokenizer, read_captions, require_decoder
from vidjax.runs.video_text import tokenizer_of


@dataclasses.dataclass(frozen=True)
class Config:
    """A captioning job."""

    paths: Positional[tuple[str, ...]]
    """Video files, folders of videos, and lists: LIST or LIST:FOLDER (.csv .jsonl .txt .json)."""
    run: str
    """The work directory of a run that writes captions, or a published checkpoint (file, directory, name or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(); needed if the checkpoint does not specify its model."""
    tokenizer: str | None = None
    """Needed if neither the run nor the checkpoint contains a tokenizer: a directory, or any tokenizer.json."""
    instruction_tokenizer: str | None = None
    """That of an InstructBLIP's Q-Former, if the checkpoint does not contain it."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of a run: the one that validated best, or the newest."""
    beams: int = 3
    """Captions that are continued at the same time; 1 takes the likeliest word each time."""
    prompt: str = ""
    """What every caption begins with, such as "a picture of" for BLIP; printed with it."""
    question: str | None = None
    """A question that a BLIP for questions, a BLIP-2 or an InstructBLIP answers about every video."""
    length: int = 96
    """Maximum number of tokens that are written."""
    batch_size: int = 8
    """Clips per batch."""
    data: GivenClipConfig = GivenClipConfig()
    """Sampling and cropping of the clips."""
    json: str | None = None
    """Write the captions to this new file."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type: auto is bfloat16 on accelerators, float32 on a CPU."""

    def __post_init__(self) -> None:
        check_values(self)
        require_positive(self, "beams", "batch_size", "length")
        if self.question is not None and (self.prompt or not self.question.strip()):
            raise UserError("question: give a sentence, and no --prompt")
        if not self.paths:
            raise UserError("no video is given: give files or folders")
        if self.json is not None and os.path.lexists(self.json):
            raise UserError(f"{self.json} already exists, and nothing is overwritten: give another --json")
        cli.check_files(json=self.json)


def main(config: Config) -> list[dict[str, Any]]:
    """Prints and returns the caption or answer, or the error, of each file."""
    from vidjax.data.windows import batches, open_files

    videos = open_files(config.paths, runs.square_pixels(config.run, config.data))
    print_notes(videos.source)
    settings = {"which": config.which, "strict": True, "verbose": False, "dtype": runs.computing_type(config.dtype)}
    model, variables = runs.load_pretrained(config.run, config.model, **settings)
    model, tokenizer = require_decoder(config.run, model), tokenizer_of(config.run, config.tokenizer)
    instructions = instruction_tokenizer(config.run, model, config.instruction_tokenizer)
    texts = {"prompt": config.prompt, "length": config.length, "question": config.question}
    write = jax.jit(caption_writer(model, tokenizer, config.beams, **texts, instructions=instructions))
    kind = "caption" if config.question is None else "answer"
    clips = runs.cut_clips(config.run, model, config.data)
    files: list[dict[str, Any]] = [{"path": path} for path in videos.source.ids]

    def failed(index: int, error: ValueError) -> None:
        files[index]["error"] = str(error)
        print(f"cannot be read: {error}", file=sys.stderr, flush=True)

    streams = (videos.clip(index, clips) for index in range(len(files)))
    for batch, video in batches(streams, min(config.batch_size, len(files)), clips.workers or core_count(), failed):
        captions = read_captions(tokenizer, np.asarray(write(variables, video[:, 0])))
        for (index, _), caption in zip(batch, captions, strict=False):  # the batch may be padded
            begun = "" if instructions else config.prompt  # an instruction is no part of the text
            files[index][kind] = f"{begun} {caption}".strip()
            print(f"{files[index]['path']}: {files[index][kind]}", flush=True)
    if config.json:
        Path(config.json).write_text(json.dumps(files, indent=1) + "\n")
    if all("error" in file for file in files):
        raise UserError(f"none of the {len(files)} files could be read: see the reasons above")
    return files


if __name__ == "__main__":
    cli.run(main, Config)
