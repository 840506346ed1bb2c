"""Published checkpoints of language models, and of models of vision and language; see `published`."""

from functools import partial

from vidjax.convert.publication import APACHE, BSD, MIT, Published

hugging_face = partial(Published, layout="transformers", classes="", facts="huggingface.co, the model's card")
blip = partial(Published, layout="original", licence=BSD, classes="", facts="salesforce/BLIP README.md")
BLIP = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models"
LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2"

# fmt: off
ROWS = (
    # Language models
    *(
        hugging_face(f"gpt2{size}", f"gpt2{size}", f"openai-community/gpt2{size.replace('_', '-')}", licence=MIT,
            data="WebText")
        for size in ("", "_medium", "_large", "_xl")
    ),
    *(
        hugging_face(f"opt_{size.replace('.', '_')}", f"opt_{size.replace('.', '_')}", f"facebook/opt-{size}",
            licence="OPT-175B")
        for size in ("125m", "2.7b", "6.7b")
    ),
    *(hugging_face(f"t5_{size}", f"t5_{size}", f"google-t5/t5-{size}", licence=APACHE, data="C4")
        for size in ("small", "base")),
    *(hugging_face(f"flan_t5_{size}", f"flan_t5_{size}", f"google/flan-t5-{size}", licence=APACHE)
        for size in ("base", "xl")),
    # BLIP. The files of the pre-trained models also contain the momentum model, `load_pretrained(layout="momentum")`.
    blip("blip_base_14m", "blip_base", f"{BLIP}/model_base_14M.pth", data="14M images"),
    blip("blip_base_129m", "blip_base", f"{BLIP}/model_base.pth", data="129M images"),
    blip("blip_large_129m", "blip_large", f"{BLIP}/model_large.pth", data="129M images"),
    *(
        blip(f"blip_{size}_retrieval_{data.lower()}", f"blip_{size}_retrieval",
            f"{BLIP}/model_{size}_retrieval_{file}.pth", data=data)
        for size in ("base", "large") for data, file in (("COCO", "coco"), ("Flickr30k", "flickr"))
    ),
    blip("blip_large_caption_coco", "blip_large_caption", f"{BLIP}/model_large_caption.pth", data="COCO"),
    hugging_face("blip_base_caption_coco", "blip_base_caption", "Salesforce/blip-image-captioning-base", licence=BSD,
        data="COCO"),
    hugging_face("blip_base_vqa_v2", "blip_base_vqa", "Salesforce/blip-vqa-base", licence=BSD, data="VQA v2"),
    # BLIP-2. The file of the first stage need not contain the frozen image tower.
    Published("blip2_giant_129m", "blip2_giant", f"{LAVIS}/blip2_pretrained.pth", "original", licence=BSD, classes="",
        data="129M images", facts="salesforce/LAVIS lavis/configs/models/blip2/blip2_pretrain.yaml"),
    hugging_face("blip2_giant_retrieval_129m", "blip2_giant_retrieval", "Salesforce/blip2-itm-vit-g", licence=MIT,
        data="129M images"),
    *(
        hugging_face(f"blip2_{name}_129m", f"blip2_{name}", f"Salesforce/blip2-{file}", licence=MIT,
            data="129M images")
        for name, file in (("opt_2_7b", "opt-2.7b"), ("opt_6_7b", "opt-6.7b"), ("flan_t5_xl", "flan-t5-xl"))
    ),
)
# fmt: on
