"""Training and validation sources from the data configs of the training scripts."""

from dataclasses import replace
from typing import TYPE_CHECKING

from vidjax.data.config import CaptionedDataConfig, LabelledSources
from vidjax.errors import UserError

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.sources import Source


def require_same_classes(source: "Source") -> None:
    """Raises UserError for a mix of sources whose labels cannot be used together."""
    from vidjax.data.mixing import differing_classes

    if reason := differing_classes(source.parts):
        raise UserError(
            f"{source.name}: {reason}: give sources of the same classes (experiments/merge_labels.py merges data sets)"
        )


def open_tasks(flag: str, name: str, split: str, square_pixels: bool, heads: tuple[str, ...]) -> "Source":
    """A mix of data sets that keep their own classes, named `HEAD: CLASS` in the order of the heads.

    Args:
      flag: the command-line flag that names the mix, for error messages.
      heads: the name of each of its sources.

    Raises:
      UserError: it is no mix of as many sources, or one of them has no labels.
    """
    from vidjax.data.mixing import mix, read_mix
    from vidjax.data.sources import open_source, with_classes

    if not name.startswith("mix:"):
        raise UserError(
            f"heads are of the sources of a mix, and {flag} is {name}: give mix:SOURCE=WEIGHT,SOURCE=WEIGHT"
        )
    weights = read_mix(name)
    if len(weights) != len(heads):
        raise UserError(f"{flag} has {len(weights)} sources, and there are {len(heads)} heads: name each of them once")
    sources = [open_source(part, split, square_pixels) for part in weights]
    if unlabelled := [source.name for source in sources if not source.class_names]:
        raise UserError(f"{unlabelled[0]} has no labels, and a head needs classes: use class folders or a label column")
    pairs = list(zip(heads, sources, strict=True))
    own = [replace(each, class_names=tuple(f"{head}: {name}" for name in each.class_names)) for head, each in pairs]
    names = tuple(name for source in own for name in source.class_names)
    return mix(name, [with_classes(source, names) for source in own], weights.values())


def open_labelled(
    data: LabelledSources,
    seed: int,
    heads: tuple[str, ...] = (),
    hashtags: str | None = None,
    hashtag_sampling: str = "square_root",
) -> tuple["Source", "Source | None"]:
    """Opens labelled training and validation videos; the classes are those of the training videos.

    Args:
      seed: seed for drawing `train_examples` and `validation_examples`.
      heads: names of the data sets of a mix that keep their own classes, see `open_tasks`; those of validation are in
        the same order.
      hashtags: label the videos by the hashtags in their captions: `all`, or a JSON list of those that count.
      hashtag_sampling: `square_root`, or `uniform` to draw all videos equally often.

    Raises:
      UserError: videos without labels, fewer than two classes, sources of a mix with different classes, or validation
        classes that are not in the training set.
    """
    from vidjax.data.hashtags import read_hashtags, with_hashtags
    from vidjax.data.sources import draw, open_source, require_labels, with_classes

    def opened(name: str, split: str, flag: str) -> "Source":
        if heads:
            return open_tasks(flag, name, split, data.square_pixels, heads)
        return open_source(name, split, data.square_pixels)

    train = opened(data.train, data.train_split, "data.train")
    if hashtags is not None:
        train = with_hashtags(train, read_hashtags(hashtags))
    if hashtag_sampling == "uniform":
        train = replace(train, weights=None)
    require_same_classes(train)
    if train.parts and data.train_examples is not None:
        raise UserError("data.train_examples does not apply to a mix: omit it, or list fewer videos in its sources")
    if len(train.class_names) < 2:
        raise UserError(
            f"data.train {data.train} has {len(train.class_names)} classes: give labels of at least two, as folder "
            "names or in the manifest's label column"
        )
    require_labels(train)
    if data.validation is None:
        return draw(train, data.train_examples, seed), None
    validation = opened(data.validation, data.validation_split, "data.validation")
    label = with_classes if hashtags is None else with_hashtags
    validation = label(validation, train.class_names)
    require_labels(validation)
    return draw(train, data.train_examples, seed), draw(validation, data.validation_examples, seed)


def open_captioned(data: CaptionedDataConfig, seed: int, distinct: int = 0) -> tuple["Source", "Source | None"]:
    """Opens training and validation videos with captions, their own or made from class names by `data.templates`.

    Args:
      seed: seed for drawing `validation_examples`.
      distinct: number of videos in a batch that must all differ.

    Raises:
      UserError: videos without captions, fewer than two or `distinct` videos, or classes with the same name.
    """
    from vidjax.data.prompts import check_names, read_templates
    from vidjax.data.sources import draw, open_source, require_captions, with_captions, with_classes

    templates = None if data.templates is None else read_templates(data.templates)

    def captioned(source: "Source") -> "Source":
        if templates is not None:
            require_same_classes(source)
            return with_captions(source, templates)
        require_captions(source)
        return source

    source = captioned(open_source(data.source, data.split, data.square_pixels))
    if len(source) < 2:
        raise UserError(f"data.source {data.source} has {len(source)} videos: contrastive training needs at least 2")
    if distinct > len(source):
        raise UserError(
            f"a batch of {distinct} repeats some of the {len(source)} videos of {source.name}, which the objective "
            f"would contrast with themselves: give --batch_size {len(source)} or less"
        )
    if data.validation is None:
        return source, None
    validation = open_source(data.validation, data.validation_split, data.square_pixels)
    if templates is not None:
        validation = with_classes(validation, source.class_names)
    check_names(validation.class_names)
    return source, draw(captioned(validation), data.validation_examples, seed)
