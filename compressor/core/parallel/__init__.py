"""Where work runs. An engine is anything that gives a `concurrent.futures.Executor`."""
