"""Layout of Moment-DETR's released checkpoints (jayleicn/moment_detr)."""

from vidjax.convert.blocks import packed_attention
from vidjax.convert.rules import Layout, Rule, dense, norm
from vidjax.models.moment_detr import MomentDETR


def _layer(source: str, target: str, norms: int) -> tuple[Rule, ...]:
    return (
        *packed_attention(f"{source}.self_attn", f"{target}/attention"),
        *(packed_attention(f"{source}.multihead_attn", f"{target}/cross_attention") if norms == 3 else ()),
        *(rule for n in (1, 2) for rule in dense(f"{source}.linear{n}", f"{target}/fc{n}")),
        *(rule for n in range(1, norms + 1) for rule in norm(f"{source}.norm{n}", f"{target}/norm{n}")),
    )


LAYOUTS = {
    MomentDETR: (
        Layout(
            name="jayleicn/moment_detr",
            key="original",
            marker="input_vid_proj.0.LayerNorm.weight",
            wrap=lambda content: {"model": content},
            rules=(
                *(
                    rule
                    for source, target in (("input_txt_proj", "text"), ("input_vid_proj", "video"))
                    for rule in (
                        *norm(f"{source}.{{i}}.LayerNorm", f"{target}_norm_{{i}}"),
                        *dense(f"{source}.{{i}}.net.1", f"{target}_{{i}}"),
                    )
                ),
                Rule("txt_position_embed.position_embeddings.weight", "text_position/embedding"),
                *norm("txt_position_embed.LayerNorm", "text_position_norm"),
                *_layer("transformer.encoder.layers.{i}", "encoder_{i}", 2),
                *norm("transformer.encoder.norm", "encoder_norm"),
                *_layer("transformer.decoder.layers.{i}", "decoder_{i}", 3),
                *norm("transformer.decoder.norm", "decoder_norm"),
                Rule("query_embed.weight", "query"),
                *dense("span_embed.layers.{i}", "span_{i}"),
                *dense("class_embed", "classes"),
                *dense("saliency_proj", "saliency"),
                *dense("contrastive_align_projection_query", "align_query"),
                *dense("contrastive_align_projection_txt", "align_text"),
                *dense("contrastive_align_projection_vid", "align_video"),
            ),
            optional=(),
            surplus=(),
        ),
    ),
}
