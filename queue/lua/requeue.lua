-- Delayed, retrying: queued now (1). Dead: queued afresh, its envelope goes (2). Else 0.
-- KEYS 1 del  2 delb  3 dead  4 deadb  5 in  6 in:hi  7 in:lo  8 r  9 s  10 cx   ARGV 1 id
redis.call('HDEL', KEYS[10], ARGV[1])
local entry = redis.call('HGET', KEYS[2], ARGV[1])
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 and entry then
  redis.call('HDEL', KEYS[2], ARGV[1])
  local f = string.match(entry, '^~[%d,]+,([hl]?)')
  redis.call('RPUSH', f == 'h' and KEYS[6] or f == 'l' and KEYS[7] or KEYS[5], entry)
  return 1
end
entry = redis.call('HGET', KEYS[4], ARGV[1])
if redis.call('ZREM', KEYS[3], ARGV[1]) == 1 and entry then
  redis.call('HDEL', KEYS[4], ARGV[1])
  redis.call('DEL', KEYS[8], KEYS[9])
  local len, from = string.match(string.sub(entry, 1, 24), '^(%d+):()')
  if len then entry = string.sub(entry, from + tonumber(len)) end
  redis.call('RPUSH', KEYS[5], entry)
  return 2
end
return 0
