"""Draws images/cpu-step.svg and images/gpu-step.svg: python docs/drawings.py.

Lines and words have the colour of the page they stand on, boxes colours that show on any.
"""

from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "images"
WIDTH = 480
BLUE, GREEN, BROWN, VIOLET = "#3a6ea5", "#3d7d55", "#9a6324", "#76508f"


class Drawing:
    """Shapes from top to bottom, written as one SVG."""

    def __init__(self, name: str, title: str) -> None:
        self.name, self.title = name, title
        self.shapes: list[str] = []
        self.height = 0

    def box(
        self, x: int, y: int, w: int, h: int, color: str, *lines: str, opacity: float = 1
    ) -> None:
        """A filled box with lines of white text in its middle."""
        self.height = max(self.height, y + h + 8)
        self.shapes.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="4" fill="{color}"'
            f' fill-opacity="{opacity}"/>'
        )
        top = y + h / 2 - 8.5 * (len(lines) - 1) + 4.5
        for i, line in enumerate(lines):
            self.text(x + w / 2, top + 17 * i, line, fill="#fff", anchor="middle")

    def frame(self, x: int, y: int, w: int, h: int, label: str = "") -> None:
        """A box of dashed lines around others."""
        self.height = max(self.height, y + h + 8)
        self.shapes.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="none"'
            ' stroke="currentColor" stroke-opacity="0.6" stroke-dasharray="4 3"/>'
        )
        if label:
            self.text(x + 8, y + 18, label)

    def text(
        self, x: float, y: float, line: str, fill: str = "currentColor", anchor: str = "start"
    ) -> None:
        """One line, its baseline at `y`."""
        self.height = max(self.height, int(y) + 8)
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" fill="{fill}" text-anchor="{anchor}">{escape(line)}</text>'
        )

    def arrow(self, *points: tuple[int, int]) -> None:
        """A line through `points` with a head at its end."""
        path = " L".join(f"{x} {y}" for x, y in points)
        self.shapes.append(
            f'<path d="M{path}" fill="none" stroke="currentColor" stroke-width="1.5"'
            ' marker-end="url(#head)"/>'
        )

    def write(self) -> None:
        """Into `FOLDER`."""
        head = self.name + "-head"
        shapes = "\n".join(self.shapes).replace("url(#head)", f"url(#{head})")
        text = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}"'
            f' color="#777e87" font-family="sans-serif" font-size="14" role="img">\n'
            f"<title>{escape(self.title)}</title>\n"
            f'<defs><marker id="{head}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
            ' markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="currentColor"/>'
            f"</marker></defs>\n{shapes}\n</svg>\n"
        )
        (FOLDER / f"{self.name}.svg").write_text(text, "utf-8")


def cpu_step() -> Drawing:
    """A GRU with AVX-512: a tile of 8 rows and 3 registers."""
    d = Drawing("cpu-step", "One step of a GRU on a CPU: panels, a tile in registers, gates")
    d.text(8, 18, "h of the step before, [B, H]")
    for row in range(8):
        d.box(8, 28 + 13 * row, 150, 10, BLUE)
    for row in range(2):
        d.box(8, 132 + 13 * row, 150, 10, BLUE, opacity=0.35)
    d.text(236, 18, "w_hh in panels, packed once a call")
    for panel in range(2):
        left = 236 + 126 * panel
        for gate, name in enumerate("rzn"):
            faint = 1 if panel == 0 else 0.35
            d.box(left + 36 * gate, 28, 32, 116, BROWN, name, opacity=faint)
    d.text(236, 162, "16 units, k by k")
    d.text(370, 162, "next: into L2")
    d.arrow((83, 162), (83, 186))
    d.text(94, 180, "a number to all lanes")
    d.arrow((290, 168), (290, 186))
    d.frame(8, 190, 464, 122, "registers: 8 rows x 3 sums, 128 of K at a time")
    for row in range(8):
        for gate in range(3):
            d.box(60 + 124 * gate, 216 + 11 * row, 116, 8, GREEN)
    d.arrow((240, 314), (240, 338))
    d.text(252, 331, "a small buffer in L1")
    d.box(8, 342, 136, 52, BLUE, "x_gates", "of this step")
    d.arrow((146, 368), (174, 368))
    d.box(178, 342, 294, 52, VIOLET, "the cell: r, z, n, h", "16 units at a time, csrc/cells.h")
    for left, lines in (
        (8, ("h, the other", "of two buffers")),
        (166, ("output",)),
        (324, ("reserve,", "in training")),
    ):
        d.arrow((325, 396), (325, 410), (left + 74, 410), (left + 74, 424))
        d.box(left, 428, 148, 48, BLUE, *lines)
    d.text(8, 500, "then the next 8 rows, the next panel, and, by a barrier")
    d.text(8, 518, "where threads share the units, the next step")
    return d


def gpu_step() -> Drawing:
    """A cluster, a grid, and what a CTA does in one step of either."""
    d = Drawing("gpu-step", "How a cluster and a grid of CTAs share a step on a GPU")
    d.text(8, 18, "A cluster: 2 to 16 CTAs, each with its units for all steps")
    for cta in range(4):
        left = 8 + 119 * cta
        d.frame(left, 28, 107, 168, f"CTA {cta}")
        d.box(left + 8, 56, 91, 44, BROWN, "own rows", "of w_hh")
        d.box(left + 8, 106, 91, 36, VIOLET, "cell, states")
        d.box(left + 8, 148, 91, 40, BLUE, "h, in two", "buffers")
    d.arrow((61, 198), (61, 216), (180, 216), (180, 200))
    d.arrow((61, 216), (299, 216), (299, 200))
    d.arrow((61, 216), (418, 216), (418, 200))
    d.text(8, 236, "its piece of h goes by st.async into the shared memory of all")

    d.text(8, 254, "peers, counted by mbarriers; w_hh stays on the chip")

    d.text(8, 294, "A grid: 8 to 128 CTAs, each with 16 or 32 units")
    for cta in range(4):
        left = 8 + 119 * cta
        d.frame(left, 304, 107, 78, f"CTA {cta}" if cta < 3 else "CTA ...")
        d.box(left + 8, 330, 91, 44, BROWN, "own rows of", "w_hh, cell")
        d.arrow((left + 36, 384), (left + 36, 406))
        d.arrow((left + 72, 408), (left + 72, 386))
    d.box(8, 410, 464, 44, BLUE, "h: a ring of 16 rounds in global memory, read through L2")
    d.text(8, 474, "a word that is all ones is not there yet: words are their own flags")

    d.text(8, 518, "A step of a CTA")
    steps = ("receive", "multiply", "reduce", "update", "send")
    colors = (BLUE, BROWN, GREEN, VIOLET, BLUE)
    for i, (step, color) in enumerate(zip(steps, colors, strict=True)):
        left = 8 + 95 * i
        d.box(left, 528, 80, 36, color, step)
        if i + 1 < len(steps):
            d.arrow((left + 81, 546), (left + 93, 546))
    d.arrow((428, 566), (428, 586), (48, 586), (48, 568))
    d.text(240, 606, "only then: store results, ask for inputs", anchor="middle")
    return d


if __name__ == "__main__":
    for drawing in (cpu_step(), gpu_step()):
        drawing.write()
