"""The deformable decoder and what it reads."""
