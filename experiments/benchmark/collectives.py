"""The communication between devices in a step, read from the text of the compiled program.

    compiled = jit_step(step, sharding, mesh).lower(state, batch).compile()
    for collective in read_collectives(compiled.as_text()):
        print(collective.kind, collective.group, collective.times, collective.wire_bytes)

XLA's optimised HLO is the program of one device, with the shapes of its shards. The text format is not stable; this
parser reads what XLA of jaxlib 0.10 writes for CPUs, GPUs and TPUs, including asynchronous forms.
"""

import dataclasses
import re
from math import prod

import numpy as np

from vidjax.errors import UserError

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

BITS = {"pred": 8, "token": 0}

# Opcodes that only move or rename their operand: a slice of the result is a slice of the operand.
PASSES = {"bitcast", "copy", "transpose", "reshape", "convert", "get-tuple-element", "copy-start", "copy-done"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program, seen from a single device."""

    kind: str
    """One of `KINDS`, without the `-start` of its asynchronous form."""
    operand_bytes: int
    """Bytes that the device contributes per execution."""
    group: tuple[int, ...]
    """The first replica group: devices by their (row-major) positions in the mesh."""
    times: int | None
    """Executions per run of the program; None inside a loop with unknown trip count. Branches of a conditional count as
    if they were always taken."""
    sliced: bool = False
    """Of an all-reduce: whether each device uses only its own part of the result. GPUs and TPUs run this as a
    reduce-scatter, and so it is counted; XLA on CPUs does not transform it."""
    name: str = ""
    """The operation that it comes from, such as `jit(step)/jvp()/dot_general`; empty if unknown."""

    @property
    def result_bytes(self) -> int:
        """Bytes that the device receives as the result, per execution."""
        n = len(self.group)
        if self.kind == "all-gather":
            return n * self.operand_bytes
        return self.operand_bytes // n if self.kind == "reduce-scatter" else self.operand_bytes

    @property
    def wire_bytes(self) -> float:
        """Bytes that the device sends per execution, if the collective runs over a ring."""
        return self.wire_bytes_among(len(self.group))

    def wire_bytes_among(self, n: int) -> float:
        """`wire_bytes` for a group of `n` devices with the same `operand_bytes` each.

        Each device of a ring passes on n - 1 parts: of the size of the operand in an all-gather, of an n-th of it in a
        reduce-scatter. An all-reduce is a reduce-scatter and an all-gather (Patarasuk and Yuan 2009,
        doi:10.1016/j.jpdc.2008.09.002).
        """
        if self.kind == "collective-permute":
            return self.operand_bytes
        if self.kind == "all-gather":
            return (n - 1) * self.operand_bytes
        rounds = 2 if self.kind == "all-reduce" and not self.sliced else 1
        return rounds * (n - 1) / n * self.operand_bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    """Attributes after the operands."""
    is_root: bool
    number: int
    """Of a parameter, its index among the operands of the call; the value of an integer constant; otherwise -1."""


Program = dict[str, dict[str, Instruction]]
"""Computations by name, each with its instructions by name."""


def read_collectives(compiled_text: str) -> list[Collective]:
    """The collectives of a compiled program (`compiled.as_text()`), in program order.

    Collectives of a single device, which move nothing, are left out.

    Raises:
      UserError: the text is not an HLO module, or has a collective that cannot be parsed.
    """
    program, entry = parse_program(compiled_text)
    header = compiled_text.split("\n", 1)[0]
    devices = prod(int(count) for count in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header))
    # On TPUs a collective that overlaps with computation appears in several fusions with one channel: one starts it,
    # others continue it while they compute, and one waits for its end.
    starts = {
        name for name, inside in program.items() if any("AsyncCollectiveStart" in i.rest for i in inside.values())
    }
    started = {_channel(i) for name in starts for i in program[name].values() if i.opcode in KINDS}
    collectives: list[Collective] = []

    def walk(computation: str, times: int | None) -> None:
        for instruction in program[computation].values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS and (computation in starts or _channel(instruction) not in started):
                collectives.append(_collective(program, computation, instruction, kind, times, devices))
            inner = times
            if instruction.opcode == "while":
                trips = trip_count(program, instruction)
                inner = times * trips if trips and times is not None else None
            for name in called(instruction.rest):
                if name in program:
                    walk(name, inner)

    walk(entry, 1)
    return [collective for collective in collectives if len(collective.group) > 1]


def parse_program(text: str) -> tuple[Program, str]:
    """The computations of a module, and the name of its entry computation."""
    program: Program = {}
    entry, current = None, None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            entry = name if line.startswith("ENTRY ") else entry
            current = program.setdefault(name, {})
        elif current is not None and (instruction := _read_instruction(line)):
            current[instruction.name] = instruction
    if entry is None:
        raise UserError("this is not the text of a compiled program: there is no ENTRY computation")
    return program, entry


def _read_instruction(line: str) -> Instruction | None:
    """Parses `  ROOT %name = shape opcode(%operand, ...), attributes`."""
    head = re.match(r"\s+(ROOT )?%?([\w.-]+) = ", line)
    if not head:
        return None
    body = re.sub(r"/\*.*?\*/", "", line[head.end() :])
    end = _closing(body, 0) if body.startswith("(") else body.find(" ")
    opcode = re.match(r"\s*([\w-]+)\(", body[end:])
    if not opcode:
        return None
    start = end + opcode.end() - 1
    close = _closing(body, start)
    operands = tuple(re.findall(r"%([\w.-]+)", body[start:close]))
    inside = body[start + 1 : close - 1]
    number = int(inside) if opcode[1] in ("parameter", "constant") and inside.isdecimal() else -1
    return Instruction(head[2], body[:end], opcode[1], operands, body[close:], bool(head[1]), number)


def trip_count(program: Program, loop: Instruction) -> int | None:
    """How often a loop runs, if it is known or its condition compares a counter from 0 with a constant (on TPUs)."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = program[re.search(r"\bcondition=%?([\w.-]+)", loop.rest)[1]]
    root = next(instruction for instruction in condition.values() if instruction.is_root)
    if root.opcode != "compare" or "direction=LT" not in root.rest or root.operands[-1] not in condition:
        return None
    bound = condition[root.operands[-1]]
    counts = bound.opcode == "constant" and bound.shape.startswith("s32[")
    return bound.number if counts and bound.number > 0 else None


def _closing(text: str, start: int) -> int:
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.end()
    return len(text)


def _channel(instruction: Instruction) -> str | None:
    """Opcode and channel, which identify a collective of the program; None without a channel."""
    channel = re.search(r"\bchannel_id=(\d+)", instruction.rest)
    return f"{instruction.opcode} {channel[1]}" if channel else None


def called(attributes: str) -> list[str]:
    """Computations that an instruction runs: body and condition of a loop, branches, fused or called computations."""
    names = re.findall(
        r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)", attributes
    )
    branches = re.search(r"\bbranch_computations=\{([^}]*)\}", attributes)
    return names + (re.findall(r"[\w.-]+", branches[1]) if branches else [])


def _collective(
    program: Program, computation: str, instruction: Instruction, kind: str, times: int | None, devices: int
) -> Collective:
    """Builds a `Collective` from the instruction, its operands and its users."""
    shapes = [program[computation][operand].shape for operand in instruction.operands]
    name = re.search(r'op_name="([^"]*)"', instruction.rest)
    group = _pairs(instruction.rest) if kind == "collective-permute" else _group(instruction.rest, devices)
    if group is None:
        raise UserError(f"cannot parse the group of {instruction.name}: {instruction.rest[:200]}")
    sliced = kind == "all-reduce" and _is_sliced(program, computation, instruction.name, len(group))
    return Collective(kind, sum(map(_bytes, shapes)), group, times, sliced, name[1] if name else "")


def _arrays(shape: str) -> list[tuple[str, int]]:
    """Type and number of elements of `f32[2,3]{1,0}`, or of each array in a tuple."""
    arrays = re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\]", re.sub(r"\{[^{}]*\}", "", shape))
    return [(kind, prod(int(axis.lstrip("<=")) for axis in axes.split(",") if axis)) for kind, axes in arrays]


def _count(shape: str) -> int:
    """Number of elements of an array, or of all arrays in a tuple."""
    return sum(count for _, count in _arrays(shape))


def _bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays in a tuple."""
    return sum(-(-count * bits(kind) // 8) for kind, count in _arrays(shape))


def bits(kind: str) -> int:
    """Bits of an element: most types have them in their names, such as f32, s64, u4, c64, bf16, f8e4m3."""
    return BITS[kind] if kind in BITS else int(re.match(r"[a-z]+(\d+)", kind)[1])


def _group(attributes: str, devices: int) -> tuple[int, ...] | None:
    """Members of the first group of `replica_groups`, in any of its notations; `{}` is all devices.

    `{{0,1},{2,3}}` lists the groups; `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)` number, transpose and reshape the devices;
    `mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}` names the mesh axes that a group spans.
    """
    if "replica_groups={}" in attributes:
        return tuple(range(devices))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return tuple(int(member) for member in listed[1].split(","))
    if numbered := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape = [int(size) for size in numbered[1].split(",")]
        return tuple(_numbered(numbered[2], numbered[3]).reshape(shape)[0].tolist())
    if meshed := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}", attributes
    ):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", meshed[1])}
        chosen = re.findall(r"'([^']+)'", meshed[4])
        if not all(name in axes for name in chosen):
            return None
        members = _numbered(meshed[2] or str(prod(axes.values())), meshed[3]).reshape(list(axes.values()))
        return tuple(members[tuple(slice(None) if name in chosen else 0 for name in axes)].reshape(-1).tolist())
    return None


def _numbered(sizes: str, order: str | None) -> np.ndarray:
    """Device numbers of `[2,4]T(1,0)`: 0 to 7 in rows of 4, transposed."""
    shape = [int(size) for size in sizes.split(",")]
    numbers = np.arange(prod(shape)).reshape(shape)
    return numbers.transpose([int(axis) for axis in order.split(",")]) if order else numbers


def _pairs(attributes: str) -> tuple[int, ...] | None:
    """The chain of devices of a permutation from its first sender on, where each sends to the next."""
    listed = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    if not listed:
        return None
    targets = {int(a): int(b) for a, b in re.findall(r"\{(\d+),(\d+)", listed[1] + "}")}
    chain = [min(targets)]
    while (target := targets.get(chain[-1])) is not None and target not in chain:
        chain.append(target)
    return tuple(chain)


def _is_sliced(
    program: Program, computation: str, name: str, parts: int, calls: tuple[tuple[str, str], ...] = ()
) -> bool:
    """Whether all uses of an array are dynamic slices of one part out of `parts`.

    Args:
      calls: computation and name of each fusion that the search has entered, innermost last.
    """
    instructions = program[computation]

    def is_slice(user: Instruction) -> bool:
        if user.opcode == "dynamic-slice":
            return user.operands[0] == name and _count(user.shape) * parts <= _count(instructions[name].shape)
        if user.opcode in PASSES:
            return _is_sliced(program, computation, user.name, parts, calls)
        if user.opcode != "fusion":
            return False
        (inner,) = called(user.rest)
        taken = [p for p in program[inner].values() if p.opcode == "parameter" and user.operands[p.number] == name]
        deeper = (*calls, (computation, user.name))
        return all(_is_sliced(program, inner, parameter.name, parts, deeper) for parameter in taken)

    uses = [is_slice(user) for user in instructions.values() if name in user.operands]
    if instructions[name].is_root and calls:  # the array is the result of the fusion
        *outer, (computation, name) = calls
        uses.append(_is_sliced(program, computation, name, parts, tuple(outer)))
    return bool(uses) and all(uses)
