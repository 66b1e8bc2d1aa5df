"""The command ``merc``: train, evaluate, report, predict, serve, export, ablate, convert, extract, doctor, info."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch

import merc_kernels
from merc_model.commands import ablate, corpora, export, info, judge, predict, train
from merc_model.errors import UserError
from merc_model.ranks import LostRankError, number


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when done, 1 where doctor finds faults, 2 after a mistake, 130 when interrupted."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show
        options = _parser().parse_args(arguments)
        code: int = options.run(options) or 0
        sys.stdout.flush()
    except UserError as error:
        if str(error) and (number() == 0 or isinstance(error, LostRankError)):
            print(f"merc: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if number() == 0:
            line = "merc: interrupted; merc train goes on with --resume, merc ablate with the same command"
            print(line, file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        print("merc: error: out of memory; lower batch_dialogues or hidden_dim (--set)", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="merc", description="Emotion recognition in conversation with MERC-KDC.")
    parser.add_argument("--version", action="version", version=f"merc-kdc {merc_kernels.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for each in (train, judge, predict, export, ablate, corpora, info):
        each.add(commands)
    return parser
