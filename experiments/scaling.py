"""How training scales: the communication of a training step, and the throughput of the input pipeline.

    python experiments/scaling.py --model videomae_base_pretrain --batch_per_device 32 --fsdp 8
    python experiments/scaling.py input videos.csv --processes 2

The first command compiles the training step for simulated CPU devices without running it, reads the collectives from
the compiled program, and estimates the step time on 8, 256 and 4096 chips; docs/scaling.md explains the model. With
`--topology v5e:4x4` it compiles for a TPU slice, which needs `pip install libtpu` but no TPU.

The second measures the weak scaling of the input pipeline: each process has one core and reads its part of the same
batches, first alone and then together with the others, in alternating rounds.
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax

from benchmark import flags, table
from benchmark.collectives import Collective, read_collectives
from benchmark.input_scaling import InputScaling, measure_input_scaling
from benchmark.ours import draw_inputs, make_loss, make_model, make_program
from benchmark.settings import Job
from benchmark.tpu import describe_slice, traced_for_tpu
from vidjax import cli
from vidjax.data.config import core_count
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.training.cost import count_macs, peak_flops
from vidjax.training.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The interconnect of a machine. Bandwidths are in bytes per second that one chip can send."""

    kind: str
    """Device kind, a key of `training.cost.PEAKS`."""
    domain: int
    """Chips connected by the fast links: one node of GPUs, the largest slice of TPUs."""
    fast: float
    """Bandwidth of NVLink, or of the two ICI ports of one axis of the torus."""
    slow: float
    """Bandwidth between domains: a GPU's InfiniBand card, a chip's part of the data-centre network."""
    host: int
    """Chips per host."""


# NVIDIA: H100 and H200 data sheets (NVLink 900 GB/s in both directions together), DGX H100/H200 user guide (eight
# ConnectX-7 of 400 Gb/s, one per GPU). Google: cloud.google.com/tpu/docs/{v5e,v5p,v6e} (ICI of a chip, both
# directions together: 400, 1200 and 800 GB/s over 4, 6 and 4 ports; data-centre network: 6.4 and 25.6 Tb/s for the 256
# chips of v5e and v6e, 50 Gb/s per chip of v5p; largest job in one slice: 256, 6144 and 256 chips).
HARDWARE = {
    "H100": Hardware("H100", 8, 450e9, 50e9, 8),
    "H200": Hardware("H200", 8, 450e9, 50e9, 8),
    "v5e": Hardware("TPU v5 lite", 256, 100e9, 3.125e9, 8),
    "v5p": Hardware("TPU v5p", 6144, 200e9, 6.25e9, 4),
    "v6e": Hardware("TPU v6 lite", 256, 200e9, 12.5e9, 8),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The training step to compile, and the assumptions about the machines."""

    model: str = "videomae_base_pretrain"
    """A name of vidjax.list_models(): *_pretrain is trained as a masked autoencoder, others as classifiers."""
    batch_per_device: int = 32
    """Batch size per device, in clips."""
    fsdp: int = 8
    """Devices over which one copy of the parameters is sharded."""
    devices: int = 16
    """Devices to compile for; with at least twice fsdp, communication between copies is included."""
    frames: int | None = None
    """Frames per clip (default: the model's)."""
    size: int | None = None
    """Height and width in pixels (default: the model's)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute type."""
    remat: Literal["none", "dots", "blocks"] = "none"
    """What the backward pass recomputes."""
    scan: bool = False
    """Compile the blocks as one loop (`jax.lax.scan`)."""
    topology: str | None = None
    """Compile for this TPU slice, such as v5e:4x4, instead of simulated devices (needs libtpu, but no TPU)."""
    hardware: tuple[Literal["H100", "H200", "v5e", "v5p", "v6e"], ...] = ("H200", "v5p", "v5e")
    """Machines for which to estimate the step time."""
    chips: tuple[int, ...] = (8, 256, 4096)
    """Numbers of chips for which to estimate the step time: multiples of fsdp."""
    mfu: float = 0.4
    """Assumed fraction of the peak FLOP/s that a chip reaches while computing."""
    latency: float = 20e-6
    """Assumed latency of each collective in seconds, in addition to its transfer time."""
    decode_rate: float = 20.0
    """Clips per second that one core decodes from H.264 (benchmark.py input measures it)."""
    records_rate: float = 90.0
    """Clips per second that one core reads from TFRecords."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("batch_per_device", "fsdp", "devices"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be above 0")
        if not 0 < self.mfu <= 1:
            raise UserError(f"mfu is {self.mfu}: it must be above 0 and at most 1")
        if self.latency < 0:
            raise UserError(f"latency is {self.latency}: it must be 0 or more")
        for name in ("decode_rate", "records_rate"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be more than 0")
        if wrong := [count for count in (self.devices, *self.chips) if count < 1 or count % self.fsdp]:
            raise UserError(f"{wrong[0]} chips are not a multiple of fsdp {self.fsdp}: give multiples of it")
        if self.topology is None and self.devices < 2 * self.fsdp:
            raise UserError(f"{self.devices} devices hold one copy of the parameters: compile for {2 * self.fsdp}")
        cli.check_files(json=self.json)


def simulate(count: int) -> Sequence[jax.Device]:
    """Simulated devices of this CPU.

    Raises:
      UserError: JAX has already started with fewer devices.
    """
    # Only the collectives are read from the program: machine code need not be optimised.
    flags = f" --xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags  # read when JAX initialises its devices
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"JAX has already started with {len(devices)} devices, not {count}: use a process of its own")
    return devices[:count]


def compile_step(config: Config) -> tuple[list[Collective], dict[str, Any]]:
    """The collectives of the compiled step, and facts about it: parameters, MACs, devices, compile time."""
    devices = describe_slice(config.topology) if config.topology else simulate(config.devices)
    mesh = make_mesh(config.fsdp, devices=devices)
    fields = {"remat": config.remat} if config.remat != "none" else {}
    fields |= {"scan": True} if config.scan else {}
    clips = config.batch_per_device * len(devices)
    job = Job(config.model, True, config.frames, config.size, clips, config.dtype, None, 1, tuple(fields.items()))
    step, create, batch = make_program(job, mesh)
    state, model = jax.eval_shape(create), make_model(job)
    one = draw_inputs(model, 1)
    macs = count_macs(make_loss(model, False, 1), state.params, state.aux, one, state.key)
    start = time.perf_counter()
    with traced_for_tpu() if config.topology else contextlib.nullcontext():
        compiled = step.lower(state, batch).compile()
    facts = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "macs": macs,
        "devices": len(devices),
        "compiled_for": config.topology or f"{len(devices)} simulated devices of a CPU",
        "compile_seconds": time.perf_counter() - start,
    }
    return read_collectives(compiled.as_text()), facts


Group = tuple[int, int]
"""Number of members, and the distance between neighbouring members in the mesh. With fsdp 8 on 16 devices, (8, 1) is
a group with one copy of the parameters, (2, 8) has the same shard of each copy, and (16, 1) is all devices."""


def find_group(collective: Collective) -> Group:
    """The group of a collective."""
    first, second, *_ = sorted(collective.group)
    return len(collective.group), second - first


def grow(group: Group, devices: int, fsdp: int, chips: int) -> Group:
    """The corresponding group in a mesh of `chips` devices.

    Groups within one copy of the parameters keep their size; groups over all devices or over the copies grow with the
    number of copies. With `fsdp` equal to `devices` there is only one copy, so that every group keeps its size.
    """
    members, distance = group
    is_within = members * distance <= fsdp and fsdp > 1
    return group if is_within else (members * chips // devices, distance)


def group_bandwidth(hardware: Hardware, group: Group) -> float:
    """Bytes per second that each member of a group can send around a ring.

    A ring through several domains leaves each domain once. One ring per member of a domain can run in parallel, so that
    a member uses the slow links of all members of its domain, bounded by its fast links.
    """
    members, distance = group
    if members * distance <= hardware.domain:
        return hardware.fast
    together = max(hardware.domain // distance, 1)
    return min(hardware.fast, hardware.slow * together)


def project(config: Config, facts: dict[str, Any], collectives: list[Collective], name: str, chips: int) -> dict:
    """Estimates the step on `chips` chips of a machine: compute and communication time, efficiency and throughput."""
    hardware = HARDWARE[name]
    flops = 6 * facts["macs"] * config.batch_per_device  # a multiply and an add, once forward and twice backward
    compute = flops / (peak_flops(hardware.kind) * config.mfu)
    sent = latency = transfer = 0.0
    for collective in collectives:
        group = grow(find_group(collective), facts["devices"], config.fsdp, chips)
        if group[0] > 1:
            wire, times = collective.wire_bytes_among(group[0]), collective.times or 1
            sent += times * wire
            latency += times * config.latency
            transfer += times * wire / group_bandwidth(hardware, group)
    slowest, fastest = compute + latency + transfer, max(compute, latency + transfer)
    clips_per_second = chips * config.batch_per_device / fastest
    per_host = clips_per_second / max(chips / hardware.host, 1)
    return {
        "hardware": name,
        "chips": chips,
        "wire_bytes": sent,
        "compute_seconds": compute,
        "transfer_seconds": transfer,
        "latency_seconds": latency,
        "step_seconds": {"no_overlap": slowest, "full_overlap": fastest},
        "efficiency": {"no_overlap": compute / slowest, "full_overlap": compute / fastest},
        "clips_per_second": clips_per_second,
        "clips_per_second_per_host": per_host,
        "cores_per_host": {"decode": per_host / config.decode_rate, "records": per_host / config.records_rate},
    }


def tally(collectives: list[Collective]) -> list[dict[str, Any]]:
    """Collectives by kind and group: their number and bytes per step."""
    rows: dict[tuple, dict[str, Any]] = {}
    for collective in collectives:
        kind = collective.kind + (" (only a part kept)" if collective.sliced else "")
        members, distance = find_group(collective)
        empty = {"kind": kind, "members": members, "distance": distance, "count": 0, "bytes": 0, "wire_bytes": 0.0}
        row = rows.setdefault((kind, members, distance), empty)
        times = collective.times or 1
        row["count"] += times
        row["bytes"] += times * collective.operand_bytes
        row["wire_bytes"] += times * collective.wire_bytes
    return sorted(rows.values(), key=lambda row: -row["wire_bytes"])


def main(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Compiles the step and estimates its time at scale; prints two tables and returns their rows."""
    collectives, facts = compile_step(config)
    rows = tally(collectives)
    copies = facts["devices"] // config.fsdp
    size = f"{facts['parameters'] / 1e6:.1f} M parameters, {facts['macs'] / 1e9:.2f} GMACs per clip in the forward pass"
    print(
        f"{config.model}: {size}, {config.dtype}, {config.batch_per_device} clips per device\n"
        f"compiled for {facts['compiled_for']} in {facts['compile_seconds']:.0f} s: "
        f"{copies} copies of the parameters, each sharded over {config.fsdp} devices\n"
    )
    print(f"{'collective':34}{'among':>30}{'per step':>8}{'MB input':>11}{'MB sent':>9}")
    for row in rows:
        step = f"{row['members']} devices" + (f", {row['distance']} apart" if row["distance"] > 1 else "")
        counts = f"{row['count']:8,}{row['bytes'] / 1e6:11,.2f}{row['wire_bytes'] / 1e6:9,.2f}"
        print(f"{row['kind']:34}{step:>30}{counts}")
    print(f"{'all, of one device':72}{sum(row['bytes'] for row in rows) / 1e6:11,.2f}", end="")
    print(f"{sum(row['wire_bytes'] for row in rows) / 1e6:9,.2f}")
    if any(collective.times is None for collective in collectives):
        print("Loops whose trip count is unknown are counted once: the true totals are larger.")
    if not config.topology:
        print(
            "An all-reduce of which only a part is kept is counted as the reduce-scatter that accelerators run. XLA\n"
            "on CPUs sums bfloat16 as float32 and gathers parameters once, before casting them; TPUs cast first and\n"
            "gather in both passes. --topology compiles the TPU program: for VideoMAE-B 0.73 of these bytes."
        )
    cases = [(name, chips) for name in config.hardware for chips in config.chips]
    projections = [project(config, facts, collectives, *case) for case in cases]
    assumed = f"{config.mfu:.0%} of the peak, {config.latency * 1e6:.0f} us latency per collective"
    print(f"\nEstimates with {assumed}, from no overlap of computation and communication to full overlap\n")
    print(f"{'':6}{'chips':>6}{'MB sent':>9}{'compute':>10}{'comm.':>10}{'step':>20}{'efficiency':>15}", end="")
    print(f"{'clips/s/host':>16}{'cores: H.264':>14}{'TFRecord':>10}")
    for row in projections:
        step, efficiency, cores = row["step_seconds"], row["efficiency"], row["cores_per_host"]
        communication = row["transfer_seconds"] + row["latency_seconds"]
        both = f"{step['no_overlap'] * 1e3:.1f} to {step['full_overlap'] * 1e3:.1f} ms"
        ratio = f"{efficiency['no_overlap']:.0%} to {efficiency['full_overlap']:.0%}"
        print(
            f"{row['hardware']:6}{row['chips']:6}{row['wire_bytes'] / 1e6:9,.0f}{row['compute_seconds'] * 1e3:7.1f} ms"
            f"{communication * 1e3:7.1f} ms{both:>20}{ratio:>15}{row['clips_per_second_per_host']:16,.0f}"
            f"{cores['decode']:14,.0f}{cores['records']:10,.0f}"
        )
    if config.json:
        entries = [{"of": "collective", **row} for row in rows] + [{"of": "projection", **row} for row in projections]
        machine = facts | {"versions": {"jax": jax.__version__}}
        table.write_json(config.json, "scaling", config, machine, entries)
    return {"collectives": rows, "projections": projections}


def measure_input(config: InputScaling) -> list[dict[str, Any]]:
    """Measures the weak scaling of the input pipeline and prints a table."""
    rows = measure_input_scaling(config)
    print(f"{config.source}: clips of {config.frames} frames, {config.size} pixels, one core per process")
    print(f"{'clips per process':28}{'alone':>8}{f'{config.processes} at once':>12}{'efficiency':>12}{'range':>16}")
    for row in rows:
        label = {"second": "per second", "cpu_second": "per second of CPU time"}[row["clock"]]
        span = f"{row['least']:.0%} to {row['most']:.0%}"
        print(f"{label:28}{row['alone']:8.2f}{row['together']:12.2f}{row['efficiency']:12.0%}{span:>16}")
    if config.json:
        table.write_json(config.json, "scaling input", config, {"cores": core_count()}, rows)
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["input"]:
        sys.argv.pop(1)
        cli.first_word_is("--source")
        flags.run(measure_input, InputScaling)
    else:
        flags.run(main, Config)
