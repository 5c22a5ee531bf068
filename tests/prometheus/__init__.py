"""What ops see of panicd: alerts, runbooks and the dashboard, with the real Prometheus."""
