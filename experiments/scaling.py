"""How training scales: what devices say to one another in a step, and how the input pipeline keeps up.

    python experiments/scaling.py --model videomae_base_pretrain --batch_per_device 32 --fsdp 8
    python experiments/scaling.py input videos.csv --processes 2

The first compiles the training step for simulated devices of this CPU, without running it, reads the collectives from
the compiled program, and works out the step time at 8, 256 and 4096 chips from it; docs/scaling.md explains the model.
With `--topology v5e:4x4` the program is that of a TPU slice: `pip install libtpu` is all it needs, no TPU.

The second measures the weak scaling of the input pipeline: processes of one core each read their shares of the same
batches, each alone and all at once, in rounds that alternate.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax

from benchmark import flags, table
from benchmark.collectives import Collective, read_collectives
from benchmark.ours import draw_inputs, make_loss, make_model, make_program
from benchmark.settings import Job
from benchmark.shares import Shares, measure_shares
from vidjax import cli
from vidjax.data.config import core_count
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.training.cost import count_macs, peak_flops
from vidjax.training.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What chips are joined by. Bandwidths are bytes a second that one chip can send."""

    kind: str
    """As in `training.cost.PEAKS`."""
    domain: int
    """Chips that the fast links join: a node of GPUs, the largest slice of TPUs."""
    fast: float
    """Over NVLink; over the two ICI ports of one axis of the torus."""
    slow: float
    """Between domains: a GPU's InfiniBand card, a chip's share of the data-centre network."""
    host: int
    """Chips of a host."""


# NVIDIA: H100 and H200 data sheets (NVLink 900 GB/s both ways together), DGX H100/H200 user guide (eight ConnectX-7 of
# 400 Gb/s, one a GPU). Google: cloud.google.com/tpu/docs/{v5e,v5p,v6e} (ICI of a chip both ways together 400, 1200 and
# 800 GB/s over 4, 6 and 4 ports; data-centre network 6.4 and 25.6 Tb/s for the 256 chips of v5e and v6e, 50 Gb/s for
# a chip of v5p; largest job of one slice 256, 6144 and 256 chips).
HARDWARE = {
    "H100": Hardware("H100", 8, 450e9, 50e9, 8),
    "H200": Hardware("H200", 8, 450e9, 50e9, 8),
    "v5e": Hardware("TPU v5 lite", 256, 100e9, 3.125e9, 8),
    "v5p": Hardware("TPU v5p", 6144, 200e9, 6.25e9, 4),
    "v6e": Hardware("TPU v6 lite", 256, 200e9, 12.5e9, 8),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A training step, and what is assumed of the machines."""

    model: str = "videomae_base_pretrain"
    """A name of vidjax.list_models(): *_pretrain is trained as a masked autoencoder, others as classifiers."""
    batch_per_device: int = 32
    """Clips of a step on each device."""
    fsdp: int = 8
    """Devices that share one copy of the parameters."""
    devices: int = 16
    """Devices to compile for; twice fsdp shows the exchange between copies too."""
    frames: int | None = None
    """Frames of a clip (the model's own when not given)."""
    size: int | None = None
    """Pixels of a side (the model's own when not given)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of computation."""
    remat: Literal["none", "dots", "blocks"] = "none"
    """What the backward pass computes again."""
    scan: bool = False
    """Compile the blocks as one loop."""
    topology: str | None = None
    """Compile for this slice of TPUs, such as v5e:4x4, in place of simulated devices (needs libtpu, but no TPU)."""
    hardware: tuple[Literal["H100", "H200", "v5e", "v5p", "v6e"], ...] = ("H200", "v5p", "v5e")
    """Machines to work the step time out for."""
    chips: tuple[int, ...] = (8, 256, 4096)
    """Chips to work the step time out for: multiples of fsdp."""
    mfu: float = 0.4
    """Assumed share of the peak that a chip reaches where it never waits."""
    latency: float = 20e-6
    """Assumed seconds that each collective takes beside its bytes."""
    decode_rate: float = 20.0
    """Clips a second that a core decodes from H.264 (benchmark.py input measures it)."""
    records_rate: float = 90.0
    """Clips a second that a core reads from TFRecords."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
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
            raise UserError(f"{wrong[0]} chips are no multiple of fsdp {self.fsdp}: give multiples of it")
        if self.topology is None and self.devices < 2 * self.fsdp:
            raise UserError(f"{self.devices} devices hold one copy of the parameters: compile for {2 * self.fsdp}")
        cli.check_files(json=self.json)


def simulate(count: int) -> Sequence[jax.Device]:
    """So many devices of this CPU.

    Raises:
      UserError: JAX has started with fewer.
    """
    # Unrolled loops of machine code are of no interest: only the program's collectives are.
    flags = f" --xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags  # read when JAX first looks for devices
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"JAX has already started with {len(devices)} devices, not {count}: use a process of its own")
    return devices[:count]


def describe_slice(topology: str) -> Sequence[jax.Device]:
    """The chips of a TPU slice to compile for.

    Raises:
      UserError: there is no libtpu, or it knows no such slice.
    """
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # else JAX would look for the TPU that libtpu speaks of, for minutes
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this is no machine of Google's that could be asked
    simulate(2)  # for one CPU alone, models would choose convolutions of another form
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"cannot compile for {topology} ({str(error).splitlines()[0]}): pip install libtpu") from None


def compile_step(config: Config) -> tuple[list[Collective], dict[str, Any]]:
    """The collectives of the compiled step, and what is to be known of it."""
    devices = describe_slice(config.topology) if config.topology else simulate(config.devices)
    mesh = make_mesh(config.fsdp, devices=devices)
    fields = {"remat": config.remat} if config.remat != "none" else {}
    fields |= {"scan": True} if config.scan else {}
    clips = config.batch_per_device * len(devices)
    job = Job(config.model, True, config.frames, config.size, clips, config.dtype, None, 1, tuple(fields.items()))
    step, create, batch = make_program(job, mesh)
    state, model = jax.eval_shape(create), make_model(job)
    one = draw_inputs(model, 1)
    macs = count_macs(make_loss(model, train=False), state.params, state.aux, one, state.key)
    start = time.perf_counter()
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
"""Members, and the distance of one member to the next in the mesh: with fsdp 8 of 16 devices (8, 1) share a copy of the
parameters, (2, 8) hold the same part of it, (16, 1) are all."""


def find_group(collective: Collective) -> Group:
    """Who takes part."""
    first, second, *_ = sorted(collective.group)
    return len(collective.group), second - first


def grow(group: Group, devices: int, fsdp: int, chips: int) -> Group:
    """The group that takes its place in a mesh of `chips`: those that share parameters stay as many.

    Groups over all devices and over the copies grow with the number of copies; with `fsdp` equal to `devices` there is
    one copy, and every group is one that shares parameters.
    """
    members, distance = group
    is_within = members * distance <= fsdp and fsdp > 1
    return group if is_within else (members * chips // devices, distance)


def group_bandwidth(hardware: Hardware, group: Group) -> float:
    """Bytes a second that each member of a group sends over a ring.

    A ring through several domains leaves each of them once. Rings that start at each of the members in a domain use
    their slow links side by side, so that a member has the slow links of all members of its domain; the fast links
    bound it as well.
    """
    members, distance = group
    if members * distance <= hardware.domain:
        return hardware.fast
    together = max(hardware.domain // distance, 1)
    return min(hardware.fast, hardware.slow * together)


def project(config: Config, facts: dict[str, Any], collectives: list[Collective], name: str, chips: int) -> dict:
    """The step on so many chips of a machine: seconds of computing and of talking, and what follows from them."""
    hardware = HARDWARE[name]
    flops = 6 * facts["macs"] * config.batch_per_device  # a multiply and an add, once forwards and twice backwards
    compute = flops / (peak_flops(hardware.kind) * config.mfu)
    sent = waiting = talking = 0.0
    for collective in collectives:
        group = grow(find_group(collective), facts["devices"], config.fsdp, chips)
        if group[0] > 1:
            wire, times = collective.wire_bytes_among(group[0]), collective.times or 1
            sent += times * wire
            waiting += times * config.latency
            talking += times * wire / group_bandwidth(hardware, group)
    slowest, fastest = compute + waiting + talking, max(compute, waiting + talking)
    clips_per_second = chips * config.batch_per_device / fastest
    per_host = clips_per_second / max(chips / hardware.host, 1)
    return {
        "hardware": name,
        "chips": chips,
        "wire_bytes": sent,
        "compute_seconds": compute,
        "transfer_seconds": talking,
        "latency_seconds": waiting,
        "step_seconds": {"no_overlap": slowest, "full_overlap": fastest},
        "efficiency": {"no_overlap": compute / slowest, "full_overlap": compute / fastest},
        "clips_per_second": clips_per_second,
        "clips_per_second_per_host": per_host,
        "cores_per_host": {"decode": per_host / config.decode_rate, "records": per_host / config.records_rate},
    }


def tally(collectives: list[Collective]) -> list[dict[str, Any]]:
    """Collectives by kind and group: how many, and their bytes in one step."""
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
    """Compiles, counts and works out; prints two tables and returns what is in them."""
    collectives, facts = compile_step(config)
    rows = tally(collectives)
    copies = facts["devices"] // config.fsdp
    size = f"{facts['parameters'] / 1e6:.1f} M parameters, {facts['macs'] / 1e9:.2f} GMACs a clip forwards"
    print(
        f"{config.model}: {size}, {config.dtype}, {config.batch_per_device} clips a device\n"
        f"compiled for {facts['compiled_for']} in {facts['compile_seconds']:.0f} s: "
        f"{copies} copies of the parameters, each shared by {config.fsdp}\n"
    )
    print(f"{'collective':34}{'between':>30}{'a step':>8}{'MB put in':>11}{'MB sent':>9}")
    for row in rows:
        step = f"{row['members']} devices" + (f", {row['distance']} apart" if row["distance"] > 1 else "")
        counts = f"{row['count']:8,}{row['bytes'] / 1e6:11,.2f}{row['wire_bytes'] / 1e6:9,.2f}"
        print(f"{row['kind']:34}{step:>30}{counts}")
    print(f"{'all, of one device':72}{sum(row['bytes'] for row in rows) / 1e6:11,.2f}", end="")
    print(f"{sum(row['wire_bytes'] for row in rows) / 1e6:9,.2f}")
    if any(collective.times is None for collective in collectives):
        print("Loops whose length the program does not say are counted once: there is more than this.")
    if not config.topology:
        print(
            "An all-reduce of which only a part is kept is a reduce-scatter on accelerators, counted as one. XLA on\n"
            "CPUs sums bfloat16 as float32, and gathers parameters once, before it casts them; TPUs gather them cast,\n"
            "forwards and again backwards. --topology shows a TPU's own program: for VideoMAE-B 0.73 of these bytes."
        )
    cases = [(name, chips) for name in config.hardware for chips in config.chips]
    projections = [project(config, facts, collectives, *case) for case in cases]
    assumed = f"{config.mfu:.0%} of the peak, {config.latency * 1e6:.0f} us a collective beside its bytes"
    print(f"\nWorked out with {assumed}; from no overlap of computing and talking to full overlap\n")
    print(f"{'':6}{'chips':>6}{'MB sent':>9}{'compute':>10}{'talk':>10}{'step':>20}{'efficiency':>15}", end="")
    print(f"{'clips/s a host':>16}{'cores: H.264':>14}{'TFRecord':>10}")
    for row in projections:
        step, efficiency, cores = row["step_seconds"], row["efficiency"], row["cores_per_host"]
        talk = row["transfer_seconds"] + row["latency_seconds"]
        both = f"{step['no_overlap'] * 1e3:.1f} to {step['full_overlap'] * 1e3:.1f} ms"
        share = f"{efficiency['no_overlap']:.0%} to {efficiency['full_overlap']:.0%}"
        print(
            f"{row['hardware']:6}{row['chips']:6}{row['wire_bytes'] / 1e6:9,.0f}{row['compute_seconds'] * 1e3:7.1f} ms"
            f"{talk * 1e3:7.1f} ms{both:>20}{share:>15}{row['clips_per_second_per_host']:16,.0f}"
            f"{cores['decode']:14,.0f}{cores['records']:10,.0f}"
        )
    if config.json:
        told = [{"of": "collective", **row} for row in rows] + [{"of": "projection", **row} for row in projections]
        machine = facts | {"versions": {"jax": jax.__version__}}
        table.write_json(config.json, "scaling", config, machine, told)
    return {"collectives": rows, "projections": projections}


def share(config: Shares) -> list[dict[str, Any]]:
    """Measures the input pipeline and prints a table."""
    rows = measure_shares(config)
    print(f"{config.source}: clips of {config.frames} frames, {config.size} pixels, a core for each process")
    print(f"{'clips of each process':28}{'alone':>8}{f'{config.processes} at once':>12}{'efficiency':>12}{'range':>16}")
    for row in rows:
        label = {"second": "a second", "cpu_second": "a second of its own core"}[row["clock"]]
        span = f"{row['least']:.0%} to {row['most']:.0%}"
        print(f"{label:28}{row['alone']:8.2f}{row['together']:12.2f}{row['efficiency']:12.0%}{span:>16}")
    if config.json:
        table.write_json(config.json, "scaling input", config, {"cores": core_count()}, rows)
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["input"]:
        sys.argv.pop(1)
        cli.first_word_is("--source")
        flags.run(share, Shares)
    else:
        flags.run(main, Config)
