"""The frontier that is predicted for a budget on this CPU against the one that is found by running under it.

    python bench/memory/frontier.py --json bench/results/frontier.json
    python bench/memory/frontier.py --case aa_wrn10_2 --json frontier.json

For each network and depth the largest of the batch sizes that fits: modelled, and measured by `gluon-aa bench memory
--measure`, which limits the process to what it has when it begins plus the budget. A step is one of the batch sizes.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Dict, List

from gluon_aa import machine

#: Network -> (budget, depths, backends, batch sizes): budgets that some cells exceed.
CASES: Dict[str, List[str]] = {
    'aa_wrn10_2': ['600MiB', '2,3', 'reference,folded,native', '1,2,3,4,6,8,12,16,24,32,48,64,96,128'],
    'aa_wrn16_4': ['300MiB', '0,3,4', 'folded,tiled', '1,2,3,4,6,8,12,16,24,32,48'],
    'aa_resnet18': ['400MiB', '0,8', 'reference,tiled,native', '1,2,4,8,12,16,24,32,48'],
}


def sweep(net: str, directory: pathlib.Path, *flags: str) -> Dict[str, Any]:
    """What the command finds."""
    budget, depths, backends, batch_sizes = CASES[net]
    subprocess.run([sys.executable, '-c', 'from gluon_aa.cli import main; main()', 'bench', 'memory', '--net', net,
                    '--device', 'cpu', '--memory-budget', budget, '--depth', depths, '--attention-backend', backends,
                    '--batch-size', batch_sizes, '--output', str(directory), *flags], check=True)
    return dict(json.loads((directory / 'result.json').read_text()))


def largest(found: Dict[str, Any]) -> Dict[str, int]:
    """'way, depth' -> the largest batch size that fits, 0 for none."""
    return {f'{line["way"]}, depth {entry["depth"]}': entry['batch_size'] or 0
            for line in found['frontier'] for entry in line['largest_batch']}


def compare(net: str) -> List[Dict[str, Any]]:
    sizes = [0, *map(int, CASES[net][3].split(','))]
    with tempfile.TemporaryDirectory() as name:
        modelled = largest(sweep(net, pathlib.Path(name, 'modelled')))
        measured = largest(sweep(net, pathlib.Path(name, 'measured'), '--measure'))
    return [{'net': net, 'budget': CASES[net][0], 'cells': key, 'modelled': modelled[key], 'measured': measured[key],
             'steps_above': sizes.index(modelled[key]) - sizes.index(measured[key])} for key in measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--case', action='append', choices=tuple(CASES))
    parser.add_argument('--json', type=pathlib.Path, required=True)
    options = parser.parse_args()
    rows = [row for net in options.case or CASES for row in compare(net)]
    options.json.write_text(json.dumps({'cpu': machine.cpu_model(), 'rows': rows}, indent=2) + '\n')
    for row in rows:
        print(f'{row["net"]}, {row["budget"]}, {row["cells"]}: predicted {row["modelled"]}, '
              f'found {row["measured"]} ({row["steps_above"]:+d} steps)')


if __name__ == '__main__':
    main()
