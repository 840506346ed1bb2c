"""Published checkpoints of models that select tokens; see `published`."""

from functools import partial

from vidjax.convert.publication import KINETICS, MIT, Published

DRIVE = "https://drive.google.com/file/d"
dynamicvit = partial(
    Published, layout="original", licence=MIT, data="ImageNet", views="1x1", facts="raoyongming/DynamicViT README.md"
)
adavit = partial(
    Published, layout="original", licence="none given", data="ImageNet", views="1x1", facts="MengLcool/AdaViT README.md"
)
stts = partial(
    Published, layout="original", licence=MIT, classes=KINETICS, data="K400", facts="wangjk666/STTS README.md"
)

# fmt: off
ROWS = (
    adavit("adavit_small_16_in1k", "adavit_small_16", f"{DRIVE}/1vkD6w9J8sf64IPhTBgyfvsTvUlZw6TNa/view", top1=77.3),
    dynamicvit("dynamicvit_256_16_in1k", "dynamicvit_256_16", f"{DRIVE}/1fpdTNRZtGOW25UwOadj1iUdjqmu88WkO/view",
        top1=76.532, top5=93.118),
    dynamicvit("dynamicvit_small_16_in1k", "dynamicvit_small_16", f"{DRIVE}/1H5kHHagdqo4emk9CgjfA7DA62XJr8Yc1/view",
        top1=79.316, top5=94.676),
    *(
        stts(f"{model}_k400", model, f"{DRIVE}/{file}/view", views=views, top1=top1)
        for model, views, file, top1 in (
            ("stts_mvit_base_t09_s09", "5x1", "1IP_phCBQRTsUb5RQmPeRusjdlM2J10Xb", 78.1),
            ("stts_mvit_base_t08_s09", "5x1", "1Fd0q3e9VDfokfuljt0hF7FXfRxh3QO61", 77.9),
            ("stts_mvit_base_t06_s09", "5x1", "1Zkn-AY6Pb2wMuzQrUFXQYGJLugVG9BQF", 77.5),
            ("stts_mvit_base_t05_s07", "5x1", "1JSESMIOi1A-9QaQflcoxCPS7RYxa03pH", 76.6),
            ("stts_mvit_base_t04_s06", "5x1", "1A5qA1d6lIpskV8cQVjDFuwD128SI4OfJ", 75.6),
            ("stts_video_swin_b_t09", "4x3", "1GhIUgFBLTBQqZZ0puEtTSJPB_4ca77oy", 81.9),
            ("stts_video_swin_b_t08", "4x3", "1gqLCuDUeSYjx2XKqPPaZDDWD9WDWnJjb", 81.6),
            ("stts_video_swin_b_t06", "4x3", "1bGIULKgISA5EGanO1Es6_tvqvQsoAnrb", 81.4),
            ("stts_video_swin_b_t05", "4x3", "1xokwKomvCkGfyATaY_2yzjQr9OcBi995", 81.1),
            ("stts_video_swin_b_t04", "4x3", "1W6sQp7bjKDWleARivkuoMmZOWzi5YKsl", 80.7),
        )
    ),
)
# fmt: on
