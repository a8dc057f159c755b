"""Human review: decisions on held answers."""
