"""The lab's short form is its tests without those marked long; FERRY_LAB=long is all of them."""
import os


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes many minutes; only in the lab's long form")


def pytest_collection_modifyitems(config, items):
    if os.environ.get("FERRY_LAB") == "long":
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
