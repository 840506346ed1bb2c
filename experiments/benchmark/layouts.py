"""What a program compiled for TPUs writes to memory: how much of it is copies and padding, read from its text.

On a TPU the last two axes of an array lie in tiles such as 8 x 128 and are padded to their multiples, so that 1,568
tokens of width 64 take twice their bytes if the width is last. The text format is not stable; this reads that of
libtpu 0.0.42.
"""

import collections
import dataclasses
import re
from math import prod

from benchmark.collectives import Instruction, Program, bits, called, parse_program, trip_count

SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
NOTHING_WRITTEN = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "while", "conditional", "call",
    "partition-id", "custom-call",
}  # fmt: skip
"""Opcodes that write nothing themselves; nor do those that end in `-start` or `-done`, which move an array between the
two memories of a chip while others compute."""
MOVES = {"copy", "transpose", "pad", "reshape", "slice", "concatenate", "reverse"}
NO_WORK = MOVES | {"parameter", "bitcast", "constant", "tuple", "get-tuple-element", "broadcast"}


@dataclasses.dataclass(frozen=True)
class Written:
    """Bytes that the operations of a program write.

    Attributes:
      total: all of them, padding included.
      moved: by operations that only transpose, copy, pad, cut or concatenate.
      padding: in tiles, without values.
      most_moved, most_padding: bytes by operation and shape, the largest first.
    """

    total: int
    moved: int
    padding: int
    most_moved: dict[str, int]
    most_padding: dict[str, int]


def array_bytes(shape: str) -> tuple[int, int]:
    """Bytes of the arrays of a shape such as `bf16[8,196,64]{2,1,0:T(8,128)(2,1)}`: of their values, and with padding.

    The numbers in braces are the axes from the innermost on. The first tile `T(8,128)` covers as many of the innermost
    axes as it has numbers; the others divide it and pad no further.
    """
    values = padded = 0
    for kind, sides, order, tiles in SHAPE.findall(shape):
        axes = [int(side) for side in sides.split(",") if side]
        values += -(-prod(axes) * bits(kind) // 8)
        physical = [axes[int(axis)] for axis in order.split(",") if axis] if order else axes[::-1]
        tile = re.match(r"T\(([\d,]+)\)", tiles)
        for i, size in enumerate(reversed(tile[1].split(",")) if tile else ()):
            if i < len(physical):
                physical[i] = -(-physical[i] // int(size)) * int(size)
        padded += -(-prod(physical) * bits(kind) // 8)
    return values, padded


def read_written(compiled_text: str, largest: int = 5) -> Written:
    """What a compiled program (`compiled.as_text()`) writes; the body of a loop counts as often as it runs, if known.

    Operations inside a fusion write nothing but its result. A fusion moves if everything inside it does.

    Raises:
      UserError: the text is not an HLO module.
    """
    program, entry = parse_program(compiled_text)
    total = moved = padding = 0
    most_moved: collections.Counter[str] = collections.Counter()
    most_padding: collections.Counter[str] = collections.Counter()

    def walk(computation: str, times: int) -> None:
        nonlocal total, moved, padding
        for instruction in program[computation].values():
            inside = [name for name in called(instruction.rest) if name in program]
            if instruction.opcode in ("while", "conditional", "call", "async-start"):
                trips = trip_count(program, instruction) if instruction.opcode == "while" else 1
                for name in inside:
                    if f"condition=%{name}" not in instruction.rest:
                        walk(name, times * (trips or 1))
            if instruction.opcode in NOTHING_WRITTEN or instruction.opcode.endswith(("-start", "-done", "-update")):
                continue
            shapes = _written_shapes(program, computation, instruction)
            values, padded = (sum(sides) for sides in zip(*map(array_bytes, shapes), strict=True))
            opcodes = {each.opcode for name in inside for each in program[name].values()} or {instruction.opcode}
            label = f"{_operation(instruction.rest) or instruction.opcode} {_plain(instruction.shape)}"
            total += times * padded
            padding += times * (padded - values)
            most_padding[label] += times * (padded - values)
            if opcodes <= NO_WORK and opcodes & MOVES:
                moved += times * padded
                most_moved[label] += times * padded

    walk(entry, 1)
    return Written(
        total, moved, padding, dict(most_moved.most_common(largest)), dict(most_padding.most_common(largest))
    )


def _written_shapes(program: Program, computation: str, instruction: Instruction) -> list[str]:
    """Shapes of what an operation writes: of a slice that is put in place, the slice."""
    results = [(program[computation], instruction)]
    if instruction.opcode == "fusion":
        inside = program[called(instruction.rest)[0]]
        root = next(each for each in inside.values() if each.is_root)
        results = [(inside, inside[name]) for name in root.operands] if root.opcode == "tuple" else [(inside, root)]
    shapes = []
    for inside, result in results:
        while result.opcode == "bitcast" and result.operands[0] in inside:
            result = inside[result.operands[0]]
        put = result.opcode == "dynamic-update-slice"
        shapes.append(inside[result.operands[1]].shape if put else result.shape)
    return shapes


def _operation(attributes: str) -> str:
    """The last parts of the name of the operation in the model, such as `attention/qkv/dot_general`."""
    name = re.search(r'op_name="([^"]*)"', attributes)
    return "/".join(name[1].split("/")[-3:]) if name else ""


def _plain(shape: str) -> str:
    """The shape with its order of axes, without tiles."""
    return re.sub(r":[^{}]*\}", "}", shape)
