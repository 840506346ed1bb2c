"""Find videos by sentences: how well it works on captioned videos, or the answers to one query.

    python experiments/retrieve.py --run runs/c --data.source captions.jsonl
    python experiments/embed.py --run runs/c --pooling model --data.source /videos --out embeddings.npz --window 16
    python experiments/retrieve.py --run runs/c --query "a man plays with a dog" --in embeddings.npz

`--run` is the work directory of a contrastive run, or a CLIP or ActionCLIP checkpoint (file, directory, hub id).
Without a query, all captions of all videos are compared with all videos: from text to video, the rank of a caption's
own video; from video to text, the best rank of a video's own captions. Equal similarities count against the model by
half their number, so that a model which cannot tell anything apart scores as chance does.

Prints a table and writes OUT: retrieval.json, retrieval.txt, ranks.csv (a line a caption), similarity.png, and
bad_files.jsonl where a video could not be read.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from vidjax import cli, runs
from vidjax.data.config import SourceConfig
from vidjax.data.embeddings import read_meta
from vidjax.errors import UserError
from vidjax.evaluation.retrieval import Ranking, retrieval
from vidjax.fields import check_values
from vidjax.matching import check_tokenizer, clip_encoder, require_video_text, text_encoder, tokenizer_of
from vidjax.runs.announce import print_notes
from vidjax.runs.results import open_results, write_csv
from vidjax.runs.search import name_nearest
from vidjax.training.sharding import check_batch_size, make_mesh, replicated
from vidjax.visualize.similarity import save_similarity

SHOWN = 32
"""Videos in the picture of similarities."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to find, where, and with what."""

    run: str
    """The work directory of a contrastive run, or a published checkpoint (file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(), where the checkpoint does not say what it is."""
    which: Literal["best", "last"] = "best"
    """Of a run: the checkpoint that validated best, or the newest."""
    tokenizer: str | None = None
    """Where neither a run nor the checkpoint's directory says it: CLIP's vocabulary (a file or a directory)."""
    data: SourceConfig = SourceConfig()
    """The videos, with captions."""
    views: str = "1x1"
    """Clips over time x crops over space, of every video; their embeddings are averaged."""
    query: str | None = None
    """Look for this sentence instead of measuring."""
    index: Annotated[str | None, tyro.conf.arg(name="in")] = None
    """The .npz file of embed.py to look in, made with --pooling model."""
    neighbours: int = 5
    """Answers to name."""
    batch_size: int = 8
    """Videos at a time, over all devices; changes no result."""
    out: str | None = None
    """Where the results go (default: retrieval/1, 2, ... in the run's directory, or in runs/ for a checkpoint)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of computation: auto is bfloat16, on a CPU float32."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        check_values(self)
        runs.read_views(self.views)
        if self.neighbours < 1:
            raise UserError(f"neighbours is {self.neighbours}: it must be 1 or more")
        if (self.query is None) != (self.index is None):
            raise UserError('a query needs embeddings and they a query: give --query "a sentence" --in FILE.npz')
        if self.query is not None and not self.query.strip():
            raise UserError("query is empty: give a sentence")


def search(config: Config, variables: dict, embed_texts: Any) -> list[dict[str, Any]]:
    """The windows of the embeddings that are nearest to the sentence, printed and returned.

    Raises:
      UserError: the embeddings are not of this model, or not of the kind that sentences are compared with.
    """
    meta = read_meta(Path(config.index))
    if Path(config.index).suffix != ".npz" or meta["pooling"] != "model":
        raise UserError(f"{config.index} cannot be searched by text: make an .npz file by embed.py --pooling model")
    if meta["weights"] != runs.fingerprint(variables):
        raise UserError(f"{config.run} holds other weights than those that made {config.index}: embed again")
    feature = embed_texts(variables, [config.query])
    return name_nearest(config.index, repr(config.query), feature, config.neighbours)


def describe(name: str, found: Ranking) -> str:
    """A line of the table."""
    return (
        f"{name:16} {found.r1:7.1%} {found.r5:7.1%} {found.r10:7.1%} {found.median_rank:8,.1f} {found.mean_rank:8,.1f}"
        f" {len(found.ranks):9,}"
    )


def main(config: Config) -> dict[str, Any] | list[dict[str, Any]]:
    """Measures, prints and writes, and returns what retrieval.json holds; or answers a query."""
    from vidjax.data.pipeline import BadFiles, evaluation_batches
    from vidjax.data.sources import open_source, require_captions

    check_batch_size(config.batch_size)
    mesh = make_mesh()
    source = None
    if config.query is None:
        source = open_source(config.data.source, config.data.split, runs.square_pixels(config.run, config.data))
        print_notes(source)
        require_captions(source)
    loaded = {"which": config.which, "strict": True, "dtype": runs.computing_type(config.dtype)}
    model, variables = runs.load_pretrained(config.run, config.model, **loaded)
    model = require_video_text(config.run, model)
    tokenizer = tokenizer_of(config.run, config.tokenizer)
    check_tokenizer(tokenizer, model)
    embed_texts = text_encoder(model, tokenizer, mesh)
    variables = jax.device_put(variables, replicated(mesh))
    if source is None:
        return search(config, variables, embed_texts)

    clips = runs.cut_clips(config.run, model, config.data)
    out = open_results(config.out, config.run, "retrieval")
    views = f"{config.views} views of {clips.frames} frames, {clips.sampling}"
    print(f"{source.name}: {len(source):,} videos, {views}", flush=True)
    bad_files = BadFiles(source, clips.max_bad_share, out / "bad_files.jsonl")
    settings = {"batch_size": config.batch_size, "view_counts": runs.read_views(config.views), "bad_files": bad_files}
    batches = evaluation_batches(source, clips, **settings)
    video, _, index, valid = clip_encoder(model, mesh)(variables, batches)
    video, index = video[valid].mean(axis=1), index[valid]
    video /= np.linalg.norm(video, axis=1, keepdims=True)
    captions = [source.captions(int(i)) for i in index]
    owner = np.repeat(np.arange(len(captions)), [len(each) for each in captions])
    flat = [text for each in captions for text in each]
    texts = embed_texts(variables, flat)
    both = retrieval(video, texts, owner)
    found = {"text_to_video": both.text_to_video, "video_to_text": both.video_to_text}
    honest = f"{int(valid.sum()):,} of {len(source):,} videos decoded, {len(flat):,} captions"
    text = f"{config.run} on {source.name}\n{views}\n{honest}\n\n"
    text += f"{'':16} {'R@1':>7} {'R@5':>7} {'R@10':>7} {'median':>8} {'mean':>8} {'queries':>9}\n"
    text += "\n".join(describe(name.replace("_", " "), each) for name, each in found.items())
    numbers = {
        name: {key: value for key, value in dataclasses.asdict(each).items() if key != "ranks"}
        for name, each in found.items()
    }
    numbers |= {"videos": len(source), "decoded": int(valid.sum()), "captions": len(flat), "views": config.views}
    numbers |= {"clips": dataclasses.asdict(clips), "config": cli.as_dict(config)}
    (out / "retrieval.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (out / "retrieval.txt").write_text(text + "\n", "utf-8", "backslashreplace")
    ranks = zip(flat, owner, found["text_to_video"].ranks, strict=True)
    write_csv(
        out / "ranks.csv",
        [{"caption": caption, "video": source.ids[index[i]], "rank": f"{rank:g}"} for caption, i, rank in ranks],
    )
    first = np.unique(owner, return_index=True)[1][:SHOWN]
    names = [flat[i] for i in first]
    save_similarity(out / "similarity.png", texts[first] @ video[: len(first)].T, names)
    print(f"\n{text}\n\nwritten to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return numbers


if __name__ == "__main__":
    cli.run(main, Config)
