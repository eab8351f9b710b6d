"""gluon-aa bench: the group of measurements."""
import click

from gluon_aa.cli.bench_attention import attention
from gluon_aa.cli.bench_memory import memory
from gluon_aa.cli.bench_throughput import throughput


@click.group()
def bench() -> None:
    """Measurements on this machine."""


for _command in (attention, memory, throughput):
    bench.add_command(_command)
