"""The protocol of long stages: any kill loses at most two units, and the same command goes on.

A long rule supplies a `Task`: what determines its result, a numerics plan, arrays, and a pure `compute(unit)`.
`run_stage` does the rest, in one directory:

    manifest.json   written last, byte-identical for equal results: the only output a workflow rule declares
    store.zarr/     the arrays; its root attributes hold parameters, numerics plan and library versions
    journal         one line per finished unit, with size and SHA-256 of every file that the unit wrote
    events.jsonl    what varies between equal runs: times, hosts, attempts, device
    lock/           one numbered directory: the present owner with its heartbeat, and the owner's workspace
    purged.json     in the manifest's place once the large arrays were removed to free disk (`purge_stage`)

What was finished under other parameters is not removed, but set aside in `<directory>.superseded`, and taken back from
there when it is wanted again (`quadscape/stage/superseded.py`).

A unit is written in the workspace, then renamed into the store, then journalled; what is not in the journal does not
count and is swept. The journal is what tells a finished chunk from a missing one, which Zarr would read as NaN.
At each start every file is read back and compared with the journal; a unit whose files are damaged is computed again.

Fencing: whoever takes over creates the next number (only one can) and moves the old workspace away. A process that was
stopped, or whose node was thought dead, notices at its next commit and raises `FencedError`; and since everything that
it changes is a rename out of or into its own workspace, it cannot change anything even between check and rename.
Signals are not relied on.
"""
