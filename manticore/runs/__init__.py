"""A run's folder: what was asked, what was used, what happened.

```
recipe.yaml        the resolved recipe
environment.json   versions and machine; environment-2.json and so on after a resume elsewhere
stages/<name>.json one record for each finished stage
metrics.jsonl      one line for each logged record
result.json        the result
```
"""

from manticore.runs.environment import environment
from manticore.runs.files import atomic_folder, write_json, write_text
from manticore.runs.folder import RunFolder, differing_keys

__all__ = [
    "RunFolder",
    "atomic_folder",
    "differing_keys",
    "environment",
    "write_json",
    "write_text",
]
