"""The help of the commands: nothing cut off, and an example for each."""

from __future__ import annotations

import click

from cli.fields import Command

#: Of each command. `ID` and the like stand for what the reader has.
EXAMPLES = {
    "up": "HELIXQ_PORT=9000 helixq up",
    "web": "HELIXQ_HOST=0.0.0.0 helixq web",
    "worker": "HELIXQ_DEVICE=cuda helixq worker",
    "maintain": "helixq maintain",
    "migrate": "helixq migrate",
    "ask": 'helixq ask --final "What is 47 * 36?"\necho "What is 47 * 36?" | helixq ask --json id,answer',
    "chat": "helixq chat --url helixq.example:8000",
    "bench api": "helixq bench api --json",
    "bench batch": "helixq bench batch",
    "bench engine": "helixq bench engine --json",
    "bench history": "helixq bench history",
    "bench idle": "helixq bench idle",
    "bench lora": "helixq bench lora",
    "bench readers": "helixq bench readers",
    "bench service": "helixq bench service --json",
    "bench track": "helixq bench track",
    "completion": "helixq completion bash > ~/.local/share/bash-completion/completions/helixq",
    "doctor": "helixq doctor\nhelixq doctor --skip model --skip gpu",
    "eval": "helixq eval",
    "jobs list": "helixq jobs list --status failed --limit 100\nhelixq jobs list -q '\"blue sky\"' --json id,question",
    "jobs show": "helixq jobs show ID\nhelixq jobs show ID --json attempts",
    "jobs watch": "helixq jobs watch ID",
    "jobs cancel": "helixq jobs cancel ID",
    "jobs retry": "helixq jobs retry ID",
    "jobs replay": "helixq jobs replay ID\nhelixq jobs replay --since 2026-01-01 --sample 100",
    "jobs review": "helixq jobs review ID --regeneration -1 --note 'It is metres.'",
    "jobs erase": "helixq jobs erase ID --text /question",
    "jobs delete": "helixq jobs delete --metadata team=a --dry-run",
    "jobs export": "helixq jobs export -o pairs.parquet --shape preference",
    "jobs import": "helixq jobs import jobs.jsonl.zst --key VKEY",
    "jobs proof": "helixq jobs proof ID -o job.tlog-proof",
    "jobs verify": "helixq jobs verify\nhelixq jobs verify job.tlog-proof --key VKEY",
    "jobs log-key": "helixq jobs log-key",
    "keys create": "helixq keys create laptop --days 90",
    "keys list": "helixq keys list --json id,name,state",
    "keys revoke": "helixq keys revoke ID",
    "lora extract": "helixq lora extract --base mistral --tuned actor-full --out actor",
    "lora merge": "helixq lora merge --base mistral --adapter actor --out merged",
    "lora inspect": "helixq lora inspect actor",
    "pause": "helixq pause --note 'New GPU, back at 15:00'",
    "resume": "helixq resume",
    "status": "helixq status\nhelixq status --json workers,queue",
    "webhooks create": "helixq webhooks create https://example.com/hook --events response.completed",
    "webhooks list": "helixq webhooks list",
    "webhooks show": "helixq webhooks show ID",
    "webhooks update": "helixq webhooks update ID --url https://example.com/new",
    "webhooks delete": "helixq webhooks delete ID",
    "webhooks rotate": "helixq webhooks rotate ID",
    "webhooks ping": "helixq webhooks ping ID",
    "webhooks deliveries": "helixq webhooks deliveries ID --status failed",
    "webhooks redeliver": "helixq webhooks redeliver ID",
}


class Group(click.Group):
    """A group whose list of commands cuts no line off."""

    command_class = Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the whole first sentence of its help."""
        rows = [
            (name, command.get_short_help_str(limit=1000))
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def add_examples(group: click.Group, path: str = "") -> None:
    """Add the examples to all commands of a group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            add_examples(command, f"{path}{name} ")
        elif (example := EXAMPLES.get(f"{path}{name}")) is not None:
            # The mark keeps the lines as they are.
            command.epilog = "\b\nExample:\n" + "\n".join(
                f"  {line}" for line in example.split("\n")
            )
