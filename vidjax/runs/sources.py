"""The videos that training scripts learn from and validate with, from the fields of their data configs."""

from typing import TYPE_CHECKING

from vidjax.data.config import CaptionedDataConfig, LabelledDataConfig
from vidjax.errors import UserError

if TYPE_CHECKING:  # TensorFlow takes seconds, which --help and wrong input need not
    from vidjax.data.sources import Source


def open_labelled(data: LabelledDataConfig, seed: int) -> tuple["Source", "Source | None"]:
    """Training and validation videos, labelled by the training videos' classes.

    Args:
      seed: draws `train_examples` and `validation_examples`.

    Raises:
      UserError: there are no labels, or of one class alone, or of classes that are not trained.
    """
    from vidjax.data.sources import draw, open_source, require_labels, with_classes

    train = open_source(data.train, data.train_split, data.square_pixels)
    if len(train.class_names) < 2:
        raise UserError(
            f"data.train {data.train} has {len(train.class_names)} classes: it needs labels of two or more, "
            "in folders of their names or in the manifest's label column"
        )
    require_labels(train)
    if data.validation is None:
        return draw(train, data.train_examples, seed), None
    validation = with_classes(
        open_source(data.validation, data.validation_split, data.square_pixels), train.class_names
    )
    require_labels(validation)
    return draw(train, data.train_examples, seed), draw(validation, data.validation_examples, seed)


def open_captioned(data: CaptionedDataConfig, seed: int, distinct: int = 0) -> tuple["Source", "Source | None"]:
    """Training and validation videos, with captions of their own or made of their classes by `data.templates`.

    Args:
      seed: draws `validation_examples`.
      distinct: videos of a batch that must all be different ones.

    Raises:
      UserError: there are no captions, fewer than two videos or than must be different, or two classes have one name.
    """
    from vidjax.data.prompts import check_names, read_templates
    from vidjax.data.sources import draw, open_source, require_captions, with_captions, with_classes

    templates = None if data.templates is None else read_templates(data.templates)

    def captioned(source: "Source") -> "Source":
        if templates is not None:
            return with_captions(source, templates)
        require_captions(source)
        return source

    source = captioned(open_source(data.source, data.split, data.square_pixels))
    if len(source) < 2:
        raise UserError(f"data.source {data.source} has {len(source)} videos: pairs are compared, so give 2 or more")
    if distinct > len(source):
        raise UserError(
            f"a batch of {distinct} holds some of the {len(source)} videos of {source.name} twice, and the objective "
            f"would tell them from themselves: give --batch_size {len(source)} or less"
        )
    if data.validation is None:
        return source, None
    validation = open_source(data.validation, data.validation_split, data.square_pixels)
    if templates is not None:
        validation = with_classes(validation, source.class_names)
    check_names(validation.class_names)
    return source, draw(captioned(validation), data.validation_examples, seed)
