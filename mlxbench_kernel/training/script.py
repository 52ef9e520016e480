"""A branch as a program: the steps and edits that lead to where it is."""

from __future__ import annotations

from collections.abc import Iterable

from mlxbench_kernel.training.branches import Edit


def script(branch: str, step: int, edits: Iterable[Edit]) -> str:
    """Python that takes the steps of a branch again, with its edits.

    Parameters
    ----------
    branch
        Its name.
    step
        Up to which step.
    edits
        In their order.

    Returns
    -------
    str
        A function of a stepper that was made as this one was: with the same seed, model, data
        and arguments it ends at the same bits.
    """
    lines = [
        f'"""Takes the {step} steps of branch {branch} again."""',
        "",
        "from mlxbench_kernel import Stepper",
        "",
        "",
        "def replay(stepper: Stepper) -> None:",
        '    """Of a stepper that was made with the same seed, model, data and arguments."""',
    ]
    at = 0
    for edit in edits:
        if edit.step > step:
            break
        if edit.kind == "load":
            at = edit.step
            lines.append(f"    stepper.load({edit.name!r})")
            continue
        if edit.step > at:
            lines.append(f"    stepper.run({edit.step - at})")
            at = edit.step
        if edit.kind == "set":
            lines.append(f"    stepper.set(**{{{edit.name!r}: {edit.value!r}}})")
        elif edit.kind == "restart":
            lines.append("    stepper.restart_batches()")
        elif edit.kind == "equalize":
            lines.append(f"    stepper.equalize({edit.name})")
        else:
            lines.append(f"    stepper.{edit.kind}({edit.name!r})")
    if step > at:
        lines.append(f"    stepper.run({step - at})")
    if len(lines) == 7:
        lines.append("    pass")
    return "\n".join([*lines, ""])
