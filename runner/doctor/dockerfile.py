"""Whether Modal's builder would take the Dockerfile, line for line; Docker takes more."""

from collections.abc import Iterator

from runner.doctor.base import CheckContext, Finding
from runner.targets.modal.image import faults, instructions

ORDER = 65

NAME = "Dockerfile"


def check(scene: CheckContext) -> Iterator[Finding]:
    """Every line that `runner cloud` would refuse; `runner local` may build it all the same."""
    path = scene.checkout / NAME
    if not path.is_file():
        yield Finding("error", f"{NAME} is missing", f"git checkout -- {NAME}", NAME)
        return
    found = instructions(path.read_text(encoding="utf-8", errors="replace"))
    wrong = list(faults(scene.checkout, found))
    for number, what, remedy in wrong:
        yield Finding("warning", f"Modal can't build this line: {what}", remedy, NAME, number)
    if not wrong:
        yield Finding("ok", f"{NAME}: Modal's builder takes all {len(found)} instructions")
