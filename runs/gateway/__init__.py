"""What sandboxes may ask for: locks, calls of other agents, signals and their own end. A process of its own.

Each request shows the secret of one attempt, and is about that attempt and nothing else. Source: the paths, bodies,
status codes and their order are spec/action-llama.md 1.4 to 1.6; it answers 200 and never 201.
"""
