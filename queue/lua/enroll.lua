-- A worker id enters the list of the living (fresh), or asks whether it still is there.
-- KEYS 1 hb  2 w:<wid>  3 cfg  4 fence
-- ARGV 1 wid  2 fresh  3 replication id of the server ('' unknown), then the card: field, value …
-- Another replication id than last time: a replica may have become primary and lost the newest
-- tokens, so the next ones start far above.
redis.call('HDEL', KEYS[1], '') -- a freeing write first, for a full Redis
if ARGV[3] ~= '' then
  local old = redis.call('HGET', KEYS[3], 'replid')
  if old ~= ARGV[3] then
    redis.call('HSET', KEYS[3], 'replid', ARGV[3])
    if old then redis.call('INCRBY', KEYS[4], 1048576) end
  end
end
if ARGV[2] == '1' then
  redis.call('HSETNX', KEYS[1], ARGV[1], 0)
elseif redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[2], unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[2], 86400000)
return 1
