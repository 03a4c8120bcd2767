"""What every request passes before an endpoint sees it, and every error on its way out."""
