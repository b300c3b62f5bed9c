"""Batches: many requests through one stack, from a file (`stkai batch`) or from a program (`send_all`, `asend_all`).

command          `stkai batch`, from options to exit code; signals; the summary at the end
options          the options of the command, checked
preflight        what is checked before anything is sent; `--dry-run`
job              the files of a job, opened and compared: it begins or resumes
input_lines      JSONL, CSV and stdin as numbered lines
request_formats  from a line to a request
json_text        JSON that keeps its text; templates
runner           one run: lines are sent, outcomes are written, halts are decided
engine           sends many requests in tasks, and yields outcomes
batch_client     the stack of a batch, its lines in flight and its limits
quick_commands   executions that are created and polled
output_lines     from an answer to a line of an output; messages of failures
outputs          the two files of outcomes, or stdout
merge            sorts outputs, and joins those of shards
journal          which lines were sent, and what a resumed job knows about each
append_file      records that a kill cannot tear; locks; fsync
progress         what is shown meanwhile: lines, tokens, dollars
send_all         `send_all` and `asend_all`, and their journal
senders          how each kind of client sends a request, and how that is watched
errors           errors that concern a batch as a whole
"""
