-- A worker leaves. What it still owns stays for the reapers, as after a crash.
-- KEYS 1 hb  2 a  3 land  4 land:hi  5 land:lo  6 in  7 in:hi  8 in:lo  9 w:<wid>  10 gone, then the
-- slots   ARGV 1 wid  2 now
for i = 1, 3 do
  local entry = redis.call('RPOP', KEYS[2 + i])
  while entry do
    redis.call('RPUSH', KEYS[5 + i], entry)
    entry = redis.call('RPOP', KEYS[2 + i])
  end
end
for i = 11, #KEYS do
  local entry = redis.call('LINDEX', KEYS[i], 0)
  while entry and entry ~= '@' .. ARGV[1] do
    redis.call('LPOP', KEYS[i])
    redis.call('RPUSH', KEYS[6 + (i - 11) % 3], entry)
    entry = redis.call('LINDEX', KEYS[i], 0)
  end
end
if redis.call('HLEN', KEYS[2]) > 0 then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[9])
redis.call('ZADD', KEYS[10], ARGV[2], ARGV[1]) -- a blocking read may still land something: see reap.c
return 1
