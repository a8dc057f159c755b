SELECT coalesce(max(extract(epoch FROM now()) - due_at / 1000000.0), 0)::float8 FROM (
  SELECT due_at FROM jobs
  WHERE status = 'bot' AND lane = 'later' AND lease IS NULL AND parked_at IS NULL
    AND due_at <= extract(epoch FROM now()) * 1000000
  LIMIT 10000
) AS waiting
