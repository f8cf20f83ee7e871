"""Figures and the HTML report: read-only views of a run. Installed as `automc.dashboards`."""

if __name__ != "automc.dashboards":
    raise ImportError(
        f"This folder is the package automc.dashboards, not {__name__!r}: write `import automc.dashboards` after `pip install .`."
    )
