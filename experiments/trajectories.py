"""Classifies videos by hand-made features, the baseline before networks: dense trajectories, iDT and TDD.

    python experiments/trajectories.py --data.train train.csv --data.validation val.csv --out runs/idt
    python experiments/trajectories.py --data.train train.csv --data.validation val.csv --features tdd --run runs/ft
    python experiments/fuse.py runs/idt/idt scores/rgb

Without arguments, dt, idt and tdd (of an untrained network) of the embedded videos, in some 170 seconds of CPU time,
most of it in parallel processes; docs/results.md has the accuracy.

Dense trajectories (dt, Wang et al. 2011) and improved ones (idt, Wang and Schmid 2013) are described by their shape,
HOG, HOF and MBH; tdd (Wang et al. 2015) sums the feature maps of a network along improved ones. Each kind is reduced to
half by principal components and encoded as a Fisher vector, or as a bag of visual words with a chi-square kernel; a
support vector machine classifies. Needs OpenCV: pip install 'vidjax[flow]'.

Writes for each of the features OUT/FEATURES/scores.npz, which fuse.py joins with those of networks, results.json and
results.txt; pictures of the tracks are in OUT/pictures. Tracks are cached in OUT: the same command resumes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import vidjax
from vidjax import cli
from vidjax.data.trajectories import TrackConfig, require_opencv
from vidjax.errors import UserError
from vidjax.evaluation import fisher
from vidjax.evaluation.fusion import linear_svm
from vidjax.evaluation.recognition import recognition
from vidjax.fields import check_values, require_not_negative, require_positive
from vidjax.models import example_inputs
from vidjax.runs.announce import print_notes
from vidjax.runs.results import describe_recognition, write_scores
from vidjax.runs.sources import open_labelled
from vidjax.runs.trajectories import Job, TrackedVideos, cache_pooled, cache_tracks, read, require_maps, save_pictures


@dataclass(frozen=True)
class Config:
    """Which features of which videos, and how they are encoded and classified."""

    data: TrackedVideos = TrackedVideos()
    """The labelled videos."""
    features: tuple[Literal["dt", "idt", "tdd"], ...] = ("idt",)
    """Dense trajectories, improved ones, or a network's maps along these; each is classified by itself."""
    track: TrackConfig = TrackConfig()
    """How points are followed."""
    encoding: Literal["fisher", "bag_of_words"] = "fisher"
    """Fisher vectors and a linear machine, or bags of words and a chi-square kernel."""
    gaussians: int = 256
    """fisher: number of Gaussians of each kind of descriptor."""
    words: int = 4000
    """bag_of_words: number of words of each kind of descriptor."""
    fitted_on: int = 256_000
    """Descriptors of the training videos, evenly, that Gaussians or words are learned from."""
    cost: float = 100.0
    """Of the support vector machine: weight of errors against that of a wide margin."""
    run: str | None = None
    """tdd: the work directory of a run, or a published checkpoint (name, file, directory or hub id)."""
    model: str | None = None
    """tdd: one of vidjax.list_models(), if the checkpoint does not specify it; without --run it is untrained."""
    stream: str = "video"
    """tdd: what the network sees, such as flow (extract_flow.py)."""
    workers: int = 0
    """Processes that follow points, 0 = one per core."""
    seed: int = 0
    """Of the clusters, of an untrained network and of the draw of examples."""
    out: str = "runs/trajectories"
    """Folder of the cached tracks and the results."""

    def __post_init__(self) -> None:
        check_values(self)
        require_positive(self, "gaussians", "words", "fitted_on", "cost")
        require_not_negative(self, "workers", "seed")
        if not self.features:
            raise UserError("features is empty: give dt, idt or tdd")
        if ("tdd" in self.features) != bool(self.run or self.model):
            raise UserError("tdd needs a network, and only tdd does: give --features tdd with --run, or --model")


DEMO = Config(
    TrackedVideos(train_examples=256, validation_examples=128, short_side=64, max_frames=24),
    ("dt", "idt", "tdd"), TrackConfig(step=3, patch=16, scales=3), gaussians=16, fitted_on=20_000, model="r3d_tiny",
    out="runs/trajectories_demo",
)  # fmt: skip
RECIPES = {"demo": DEMO, "videos": Config()}


def load(config: Config) -> tuple[Any, dict]:
    """The network of TDD and its variables."""
    if config.run:
        return vidjax.load_pretrained(config.run, config.model)
    model = vidjax.create_model(config.model)
    print(f"untrained: all weights of the {type(model).__name__} are newly initialised")
    inputs = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in example_inputs(model)]
    return model, jax.jit(model.init)(jax.random.key(config.seed), *inputs)


def encode(config: Config, folder: Path, readable: dict, parts: dict[str, slice]) -> dict[str, list[np.ndarray]]:
    """One vector for each kind of descriptor of each video, by training and validation; zeros without tracks."""
    share, random = -(-config.fitted_on // len(readable["train"])), np.random.default_rng(config.seed)
    drawn = [each[random.permutation(len(each))[:share]] for each in read(folder, "train", readable["train"])]
    sample, encoders = np.concatenate(drawn), {}
    print(f"{len(sample):,} descriptors for {config.encoding} of {', '.join(parts)}", flush=True)
    words, vector = jax.jit(fisher.visual_words), jax.jit(fisher.fisher_vector)
    for name, part in parts.items():
        if config.encoding == "bag_of_words":
            encoders[name] = fisher.k_means(sample[:, part], config.words, config.seed)
            continue
        mean, directions = fisher.principal_components(sample[:, part], (part.stop - part.start) // 2)
        mixture = fisher.fit_mixture((sample[:, part] - mean) @ directions, config.gaussians, config.seed)
        encoders[name] = mean, directions, mixture

    def one(descriptors: np.ndarray, name: str) -> np.ndarray:
        x, encoder = descriptors[:, parts[name]], encoders[name]
        if config.encoding == "fisher":
            x = (x - encoder[0]) @ encoder[1]
        rows = max(256, 1 << (len(x) - 1).bit_length())  # few shapes, so that few programs are compiled
        padded, valid = np.pad(x, ((0, rows - len(x)), (0, 0))), np.arange(rows) < len(x)
        if config.encoding == "bag_of_words":
            return np.asarray(words(padded, encoder, valid)) / max(len(x), 1)
        if not len(x):
            return np.zeros(2 * encoder[2].means.size, np.float32)
        return np.asarray(fisher.improve(vector(padded, encoder[2], valid)[config.gaussians :]))

    encoded = {}
    for which, videos in readable.items():
        rows = [[one(each, name) for name in parts] for each in read(folder, which, videos)]
        encoded[which] = [np.stack(column) for column in zip(*rows, strict=True)]
    return encoded


def classify(config: Config, encoded: dict[str, list[np.ndarray]], labels: np.ndarray, classes: int) -> np.ndarray:
    """The margins of the validation videos."""
    if config.encoding == "bag_of_words":
        kernels = fisher.chi_square_kernel(encoded["train"], encoded["validation"])
    else:
        # Sums over the kinds of descriptors: joined vectors would take their memory twice.
        kernels = tuple(
            sum(rows @ train.T for rows, train in zip(encoded[which], encoded["train"], strict=True))
            for which in ("train", "validation")
        )
    train, test = fisher.kernel_features(*kernels)
    return linear_svm(train, labels, test, classes, config.cost)


def main(config: Config) -> dict[str, float]:
    """Classifies, prints and writes the results; returns the accuracy of each of the features."""
    require_opencv()
    sources = dict(zip(("train", "validation"), open_labelled(config.data, config.seed), strict=True))
    print_notes(*sources.values())
    network = load(config) if "tdd" in config.features else None
    if network:
        require_maps(network[0], config.stream, sources.values())
    names, out, accuracy = sources["train"].class_names, Path(config.out), {}
    for features in dict.fromkeys(config.features):
        camera = features != "dt"
        folder = out / ("tracks_idt" if camera else "tracks_dt")
        job = Job(config.data, config.seed, config.track, camera, str(folder))
        readable, parts = cache_tracks(job, config.workers), config.track.parts()
        save_pictures(job, readable["validation"], out / "pictures")
        if features == "tdd":
            channels = cache_pooled(job, readable, *network, config.stream, out / "pooled")
            folder, parts = (
                out / "pooled",
                {"space-time": slice(0, channels), "channels": slice(channels, 2 * channels)},
            )
        labels = {which: np.array([sources[which].label(i) for i in videos]) for which, videos in readable.items()}
        margins = classify(config, encode(config, folder, readable, parts), labels["train"], len(names))
        probabilities = np.exp(margins - np.logaddexp.reduce(margins, axis=1, keepdims=True))
        result = recognition(probabilities, labels["validation"])
        text = f"{features}, {config.encoding}, on {sources['validation'].name}\n{describe_recognition(result, names)}"
        cli.make_folder(out / features, "--out")
        ids = [sources["validation"].ids[i] for i in readable["validation"]]
        write_scores(out / features, ids, labels["validation"], probabilities, margins, names)
        numbers = {"top1": result.top1, "top1_interval": result.top1_interval, "videos": result.videos}
        numbers["config"] = cli.as_dict(config)
        (out / features / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
        (out / features / "results.txt").write_text(text + "\n", "utf-8", "backslashreplace")
        print(f"\n{text}\n\nwritten to {out / features}", flush=True)
        accuracy[features] = result.top1
    return accuracy


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, "--data.train")
