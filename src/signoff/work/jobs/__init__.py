"""Operations on stored jobs: query, cancel, retry, deliver."""
