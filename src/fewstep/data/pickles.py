"""What a pickle would build, found out without building it."""

import pickletools
from typing import Any

DEEPEST = 50  # of tuples in tuples; images and labels need five


def check_pickle(content: bytes, most: int) -> None:
    """ValueError where a pickle has more opcodes than `most`, asks for memory that it does not
    fill, or has tuples in tuples so deep that Python, which hashes them by recursion, would crash.
    """
    depths = Depths()
    for count, (opcode, argument, _) in enumerate(
        pickletools.genops(content)
    ):  # ends at a length beyond the file
        put = argument if "PUT" in opcode.name and isinstance(argument, int) else 0
        if count > most or put > count:
            raise ValueError("it would take more memory than CIFAR needs")
        if depths.after(opcode, argument) > DEEPEST:
            raise ValueError(f"it holds tuples in tuples, more than {DEEPEST} deep")


class Depths:
    """How deep in tuples each object is on the stack of a pickle."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[Any, int] = {}

    def after(self, opcode: pickletools.OpcodeInfo, argument: Any) -> int:
        """Follows an opcode; the depth of what it puts on the stack."""
        name, stack = opcode.name, self.stack
        if name == "MARK":
            self.marks.append(len(stack))
        elif name == "POP" and self.marks and self.marks[-1] == len(stack):
            self.marks.pop()
        elif "PUT" in name or name == "MEMOIZE":
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif "GET" in name:
            stack.append(self.memo[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            depth = max(self._taken(opcode), default=0)
            depth += name.startswith("TUPLE") or name == "FROZENSET"
            stack += [depth] * len(opcode.stack_after)
            return depth
        return 0

    def _taken(self, opcode: pickletools.OpcodeInfo) -> list[int]:
        """What an opcode takes from the stack."""
        before = opcode.stack_before
        start = len(self.stack) - len(before)
        if pickletools.markobject in before:
            start = self.marks.pop() - before.index(pickletools.markobject)
        if start < 0:
            raise ValueError("it takes more than it has")
        taken = self.stack[start:]
        del self.stack[start:]
        return taken
