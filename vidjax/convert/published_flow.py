"""Published checkpoints of optical flow; see `published`."""

from vidjax.convert.publication import PYTORCH, torchvision

# Trained on FlyingChairs and FlyingThings3D (C+T), then on a mixture for Sintel (SKHT), then on KITTI (K). V1 are the
# weights of princeton-vl/RAFT, V2 torchvision's own. Their figures are end-point errors, not accuracies.
FILES = {
    "large": {
        "c_t_v1": "C_T_V1-22a6c225",
        "c_t_v2": "C_T_V2-1bb1363a",
        "c_t_skht_v1": "C_T_SKHT_V1-0b8c9e55",
        "c_t_skht_v2": "C_T_SKHT_V2-ff5fadd5",
        "c_t_skht_k_v1": "C_T_SKHT_K_V1-4a6a5039",
        "c_t_skht_k_v2": "C_T_SKHT_K_V2-b5c70766",
    },
    "small": {"c_t_v1": "C_T_V1-ad48884c", "c_t_v2": "C_T_V2-01064c6d"},
}
DATA = {"c": "FlyingChairs", "t": "FlyingThings3D", "skht": "Sintel's mixture", "k": "KITTI"}

ROWS = tuple(
    torchvision(
        f"raft_{size}_{name}",
        f"raft_{size}",
        f"{PYTORCH}/raft_{size}_{file}.pth",
        classes="",
        data=", ".join(DATA[part] for part in name.split("_")[:-1]),
        sha256=file.rpartition("-")[2],
    )
    for size, files in FILES.items()
    for name, file in files.items()
)
