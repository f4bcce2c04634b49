"""How well a frozen network's features serve other classes: linear probes."""
