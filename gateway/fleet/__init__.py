"""The model servers of a cascade on this machine's GPUs, from the cascade's own file.

    settings.py   what may be written under `fleet:` and a tier's `serve:`
    shapes.py     a model's dimensions, and how many parameters follow from them
    memory.py     what one server will take of each of its GPUs
    plan.py       which server goes to which GPU; a refusal says what would fit
    gpus.py       the GPUs there are
    command.py    each server's command and environment
    keeper.py     the process between us and a server, so that none outlives us
    supervise.py  starting, waiting, restarting, stopping

All but the last three are pure. `gateway/launching.py` puts them together for `confgate up`.
"""
