"""Devices: how to run and measure a model on a target. One file per runtime; `measure` holds the common protocol."""
