SELECT count(*) FROM (
  SELECT 1 FROM jobs
  WHERE status = 'bot' AND lane = 'later' AND parked_at IS NULL
    AND (lease IS NOT NULL OR due_at <= extract(epoch FROM now()) * 1000000)
  LIMIT 10000
) AS waiting
