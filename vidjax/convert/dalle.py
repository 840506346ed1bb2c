"""The layout of DALL-E's discrete VAE: two files, one of the encoder and one of the decoder.

The files that openai/DALL-E publishes are pickled modules, which are not read here. mmselfsup publishes the encoder's
state dict. Others are written by `torch.save(torch.load("encoder.pkl", weights_only=False).state_dict(), FILE)`.
"""

import re

from vidjax.convert.fits import inflate
from vidjax.convert.rules import Layout, Rule, image_kernel, rename, strip
from vidjax.models.dalle import Autoencoder, Decoder, Encoder


def convolution(source: str, target: str) -> tuple[Rule, ...]:
    """The two rules of a convolution."""
    return Rule(f"{source}.w", f"{target}/kernel", image_kernel, inflate), Rule(f"{source}.b", f"{target}/bias")


def counted_from_zero(name: str) -> str:
    """`group_1.block_1` is our `group_0.block_0`."""
    return re.sub(r"(group|block)_(\d+)", lambda match: f"{match[1]}_{int(match[2]) - 1}", name)


def counted_from_one(name: str) -> str:
    """The inverse of `counted_from_zero`."""
    return re.sub(r"(group|block)_(\d+)", lambda match: f"{match[1]}_{int(match[2]) + 1}", name)


def rules(source: str = "", target: str = "") -> tuple[Rule, ...]:
    """The rules of an encoder or a decoder, which have the same names."""
    block, ours = f"{source}blocks.group_{{g}}.block_{{i}}", f"{target}group_{{g}}_block_{{i}}"
    return (
        *convolution(f"{source}blocks.input", f"{target}input"),
        *convolution(f"{block}.id_path", f"{ours}/shortcut"),
        *convolution(f"{block}.res_path.conv_{{n}}", f"{ours}/conv_{{n}}"),
        *convolution(f"{source}blocks.output.conv", f"{target}output"),
    )


def layout(name: str, *rules: Rule) -> Layout:
    """A layout with these rules, the first of which marks it."""
    return Layout(
        name=f"openai/DALL-E's {name}",
        key="original",
        marker=rules[0].source,
        rules=rules,
        prepare=lambda weights: rename(strip(weights, "module."), counted_from_zero),
        restore=lambda weights: rename(weights, counted_from_one),
        optional=(),
        surplus=(),
    )


LAYOUTS = {
    Encoder: (layout("encoder", *rules()),),
    Decoder: (layout("decoder", *rules()),),
    Autoencoder: (layout("discrete VAE", *rules("encoder.", "encoder/"), *rules("decoder.", "decoder/")),),
}
