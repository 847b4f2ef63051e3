"""The operator's page: what it shows is counted here, what shows it lies in `page/`. See docs/console.md."""
