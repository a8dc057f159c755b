WITH RECURSIVE visited AS (
  (
    SELECT priority, user_id, due_at, 1 AS place FROM jobs
    WHERE status = 'bot' AND lane = 'later' AND lease IS NULL AND parked_at IS NULL
    ORDER BY lane, priority, user_id, due_at
    LIMIT 1
  )
  UNION ALL
  SELECT following.priority, following.user_id, following.due_at, visited.place + 1
  FROM visited CROSS JOIN LATERAL (
    SELECT priority, user_id, due_at FROM jobs
    WHERE status = 'bot' AND lane = 'later' AND lease IS NULL AND parked_at IS NULL
      AND (priority, user_id) > (visited.priority, visited.user_id)
    ORDER BY lane, priority, user_id, due_at
    LIMIT 1
  ) AS following
  WHERE visited.place < 10000
)
SELECT greatest(extract(epoch FROM now()) - coalesce(min(due_at) / 1000000.0, 'infinity'), 0)::float8 FROM visited
