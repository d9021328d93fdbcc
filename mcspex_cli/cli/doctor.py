"""`mcspex doctor`."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from mcspex_cli.cli import console, options


@click.command()
@options.offline
@options.as_json
@click.pass_context
def doctor(ctx: click.Context, offline: bool, as_json: bool) -> None:
    """Say what works on this machine and what does not, and what to do about it.

    Checks Python, torch, CUDA, sound formats, extras, caches, the Hub and the bundled models'
    checksums, then extracts a voice from a short recording with the default model. Exit code 0:
    extracting works here, whatever the warnings; 1: it does not.
    """
    from mcspex_cli.diagnosis import check_up, works

    began, findings = time.monotonic(), []
    for finding in check_up(offline=offline):
        findings.append(finding)
        if not as_json:
            console.finding(finding.status, finding.name, finding.detail, finding.remedy)
    good = works(findings)
    if as_json:
        console.data({"works": good, "findings": [asdict(f) for f in findings]}, indent=2)
    else:
        counts = [sum(f.status == status for f in findings) for status in ("warning", "failed")]
        verdict = "mcspex works here" if good else "mcspex does not work here"
        time_text = console.duration(time.monotonic() - began)
        summary = f"{console.count(counts[0], 'warning')}, {counts[1]} failed; {time_text}"
        console.text(f"\n{verdict} ({summary})\n")
    ctx.exit(0 if good else 1)
