"""For every op of lamina.layers, under the same name: its samples, bad inputs and workloads."""
