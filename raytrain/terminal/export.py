"""Terminal output of an export."""

from raytrain.inference.export import Exported
from raytrain.terminal.output import make_console


def print_export(found: Exported) -> None:
    """Print how the export compares, and its folder."""
    console = make_console()
    console.print(
        f"compared with the trained model on {found.num_rows:,} rows ({found.num_outputs:,} logits): the largest "
        f"difference is {found.largest_difference:.2g}, {found.agreement:.2%} of the labels are the same",
        soft_wrap=True,
    )
    console.print(f"export  {found.path}  ({found.num_bytes / 1e6:.1f} MB)", soft_wrap=True)
    if found.url:
        console.print(f"pushed  {found.url}", soft_wrap=True)
