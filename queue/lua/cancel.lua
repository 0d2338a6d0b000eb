-- Asks for an end: 2 final already, 1 it was delayed and is cancelled, 0 whoever has it is told.
-- KEYS 1 cx  2 r  3 del  4 delb  5 s  6 n  7 reply_to ('' none)
-- ARGV 1 id  2 now  3 ttl  4 the envelope for a delayed job
redis.call('HDEL', KEYS[1], '') -- a freeing write first, for a full Redis
if redis.call('EXISTS', KEYS[2]) == 1 then return 2 end
if redis.call('ZREM', KEYS[3], ARGV[1]) == 1 then
  redis.call('HDEL', KEYS[4], ARGV[1])
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[3], 'NX')
  redis.call('LPUSH', KEYS[6], '1')
  redis.call('PEXPIRE', KEYS[6], ARGV[3])
  redis.call('DEL', KEYS[5])
  if #KEYS > 6 then
    redis.call('LPUSH', KEYS[7], ARGV[4])
    redis.call('PEXPIRE', KEYS[7], ARGV[3])
  end
  return 1
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 0
