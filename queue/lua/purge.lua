-- Forgets dead letters that died before a time, so many at a time; returns how many.
-- KEYS 1 dead  2 deadb   ARGV 1 before, ms  2 most
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for i = 1, #ids do
  redis.call('HDEL', KEYS[2], ids[i])
  redis.call('ZREM', KEYS[1], ids[i])
end
return #ids
