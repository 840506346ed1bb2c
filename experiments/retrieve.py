"""Text-to-video retrieval: evaluate it on captioned videos, or search for one query.

    python experiments/retrieve.py --run runs/c --data.source captions.jsonl
    python experiments/embed.py --run runs/c --pooling model --data.source /videos --out embeddings.npz --window 16
    python experiments/retrieve.py --run runs/c --query "a man plays with a dog" --in embeddings.npz

`--run` is the work directory of a run of contrastive_pretrain.py, video_language_pretrain.py or
vision_language_pretrain.py, or a CLIP, ActionCLIP, ALBEF or BLIP checkpoint (file, directory, hub id).
Without a query, all captions are compared with all videos. Text to video: the rank of each caption's video; video to
text: the best rank among each video's captions. Ties count as half, so that a model whose similarities are all equal
scores as chance. `--dual_softmax` adds the metrics of the similarities times their softmax over all queries, which
InternVideo and others report: it raises recall by using the other queries of the test set. `--rerank 16` adds the
metrics after an ALBEF or a BLIP has ordered the 16 nearest candidates of each query again, by whether they match: as
published, and jointly, by the log-odds of a match plus the cosine at the scale that the model has learnt.

Prints a table and writes to OUT: retrieval.json, retrieval.txt, ranks.csv (one line per caption), similarity.png, and
bad_files.jsonl if videos could not be read.
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
from vidjax.evaluation.retrieval import Ranking, nearest_pairs, retrieval
from vidjax.fields import check_values
from vidjax.models.aligned import Aligned
from vidjax.runs.announce import print_notes
from vidjax.runs.matching import pair_scorer, rank_again, rank_jointly
from vidjax.runs.results import open_results, write_csv
from vidjax.runs.search import name_nearest
from vidjax.runs.video_text import (
    check_tokenizer,
    clip_encoder,
    require_video_text,
    similarity_scale,
    text_encoder,
    tokenize_all,
    tokenizer_of,
)
from vidjax.training.sharding import check_batch_size, make_mesh, replicated
from vidjax.visualize.similarity import save_similarity

SHOWN = 32
"""Number of videos in the image of the similarity matrix."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A retrieval evaluation, or a search."""

    run: str
    """The work directory of a contrastive run, or a published checkpoint (file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(); needed if the checkpoint does not specify its model."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of a run: the one that validated best, or the newest."""
    tokenizer: str | None = None
    """CLIP's vocabulary (file or directory); needed if neither the run nor the checkpoint contains a tokenizer."""
    data: SourceConfig = SourceConfig()
    """The videos, with captions."""
    views: str = "1x1"
    """Clips in time x crops in space of each video; their embeddings are averaged."""
    dual_softmax: bool = False
    """Also rank by the similarity times its softmax over all queries, at the scale that the model has learnt."""
    rerank: int | None = None
    """Nearest candidates that an ALBEF or a BLIP orders again by whether video and text match."""
    query: str | None = None
    """Search for this sentence instead of evaluating."""
    index: Annotated[str | None, tyro.conf.arg(name="in")] = None
    """The .npz file to search, made by embed.py with --pooling model."""
    neighbours: int = 5
    """Number of results of a search."""
    batch_size: int = 8
    """Videos per batch over all devices; does not affect the results."""
    out: str | None = None
    """Output directory (default: retrieval/1, 2, ... in the work directory, or in runs/ for a checkpoint)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type: auto is bfloat16 on accelerators, float32 on a CPU."""

    def __post_init__(self) -> None:
        check_values(self)
        runs.read_views(self.views)
        if self.neighbours < 1:
            raise UserError(f"neighbours is {self.neighbours}: it must be 1 or more")
        if (self.query is None) != (self.index is None):
            raise UserError('a search needs both a query and embeddings: give --query "a sentence" --in FILE.npz')
        if self.query is not None and not self.query.strip():
            raise UserError("query is empty: give a sentence")
        if self.query is not None and (self.dual_softmax or self.rerank):
            raise UserError("dual_softmax and rerank are for whole test sets: omit them, or --query")
        if self.rerank is not None and (self.rerank < 1 or self.views != "1x1"):
            raise UserError(f"rerank is {self.rerank} with {self.views} views: it must be 1 or more, with one view")


def search(config: Config, variables: dict, embed_texts: Any) -> list[dict[str, Any]]:
    """Prints and returns the windows whose embeddings are nearest to the query.

    Raises:
      UserError: the embeddings were not made with these weights and `--pooling model`.
    """
    meta = read_meta(Path(config.index))
    if Path(config.index).suffix != ".npz" or meta["pooling"] != "model":
        raise UserError(f"{config.index} cannot be searched by text: make an .npz file with embed.py --pooling model")
    if meta["weights"] != runs.fingerprint(variables):
        raise UserError(f"{config.run} has other weights than those that {config.index} was made with: embed again")
    feature = embed_texts(variables, [config.query])
    return name_nearest(config.index, repr(config.query), feature, config.neighbours)


def describe(name: str, ranking: Ranking) -> str:
    """A line of the table."""
    return (
        f"{name:22} {ranking.r1:7.1%} {ranking.r5:7.1%} {ranking.r10:7.1%} {ranking.median_rank:8,.1f} "
        f"{ranking.mean_rank:8,.1f} {len(ranking.ranks):9,}"
    )


def main(config: Config) -> dict[str, Any] | list[dict[str, Any]]:
    """Evaluates and returns the contents of retrieval.json, or searches for a query."""
    from vidjax.data.batches import BadFiles, evaluation_batches
    from vidjax.data.sources import open_source, require_captions

    check_batch_size(config.batch_size)
    mesh = make_mesh()
    source = None
    if config.query is None:
        source = open_source(config.data.source, config.data.split, runs.square_pixels(config.run, config.data))
        print_notes(source)
        require_captions(source)
    settings = {"which": config.which, "strict": True, "dtype": runs.computing_type(config.dtype)}
    model, variables = runs.load_pretrained(config.run, config.model, **settings)
    model = require_video_text(config.run, model)
    if config.rerank and not isinstance(model, Aligned):
        raise UserError(f"rerank: {config.run} does not tell whether pairs match, give an ALBEF or a BLIP")
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
    result = retrieval(video, texts, owner)
    rankings = {"text_to_video": result.text_to_video, "video_to_text": result.video_to_text}
    if config.dual_softmax:
        scale = float(similarity_scale(model, variables["params"]))
        dual = retrieval(video, texts, owner, dual_softmax=scale)
        rankings |= {"dual_text_to_video": dual.text_to_video, "dual_video_to_text": dual.video_to_text}
    if config.rerank:
        wanted = nearest_pairs(video, texts, config.rerank)
        ids, _ = tokenize_all(tokenizer, flat, model.text.context)
        batches = evaluation_batches(source, clips, batch_size=config.batch_size)
        logits = pair_scorer(model, mesh)(variables, batches, index, ids, wanted)
        again = rank_again(model, video, texts, owner, logits, config.rerank)
        scale = float(similarity_scale(model, variables["params"]))
        joint = rank_jointly(scale, video, texts, owner, logits, config.rerank)
        rankings |= {"reranked_text_to_video": again.text_to_video, "reranked_video_to_text": again.video_to_text}
        rankings |= {"joint_text_to_video": joint.text_to_video, "joint_video_to_text": joint.video_to_text}
    coverage = f"{int(valid.sum()):,} of {len(source):,} videos decoded, {len(flat):,} captions"
    text = f"{config.run} on {source.name}\n{views}\n{coverage}\n\n"
    text += f"{'':22} {'R@1':>7} {'R@5':>7} {'R@10':>7} {'median':>8} {'mean':>8} {'queries':>9}\n"
    text += "\n".join(describe(name.replace("_", " "), ranking) for name, ranking in rankings.items())
    numbers = {
        name: {key: value for key, value in dataclasses.asdict(ranking).items() if key != "ranks"}
        for name, ranking in rankings.items()
    }
    numbers |= {"videos": len(source), "decoded": int(valid.sum()), "captions": len(flat), "views": config.views}
    numbers |= {"clips": dataclasses.asdict(clips), "config": cli.as_dict(config)}
    (out / "retrieval.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (out / "retrieval.txt").write_text(text + "\n", "utf-8", "backslashreplace")
    ranks = zip(flat, owner, result.text_to_video.ranks, strict=True)
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
