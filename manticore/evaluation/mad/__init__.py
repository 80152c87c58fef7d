"""MAD as a measurement: protocols, sweeps, scores (Poli et al., 2024, arXiv:2403.17844).

```python
from manticore.evaluation.mad import load_records, protocol, score

protocol("full").count()              # 396 trainings for one architecture
for row in score(load_records(["runs/mad"])):
    print(row.name, row.average6.mean, row.average6.interval)
```
"""

from manticore.evaluation.mad.protocol import PROFILES, Protocol, protocol
from manticore.evaluation.mad.results import load_records
from manticore.evaluation.mad.score import score
from manticore.evaluation.mad.score_types import ArchitectureScore

__all__ = ["PROFILES", "ArchitectureScore", "Protocol", "load_records", "protocol", "score"]
