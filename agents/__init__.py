"""Search controllers, one per file. Installed as `automc.agents`."""

if __name__ != "automc.agents":
    raise ImportError(
        f"This folder is the package automc.agents, not {__name__!r}: write `import automc.agents` after `pip install .`."
    )
