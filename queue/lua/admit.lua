-- What must be asked before a claimed job may run: is its id final already, cancelled, is its unique
-- key free, are the jobs it comes after done?
-- KEYS 1 cx, then for each job: r, [u], the r of each id in after
-- ARGV for each job: id, 1 if it has a unique key, its ttl, how many ids in after
-- Says a digit a job: 0 go  1 final  2 cancelled  3 not unique  4 wait  5 a job before it did not end well
redis.call('HDEL', KEYS[1], '') -- a freeing write first, for a full Redis
local key, said, cancels = 1, {}, redis.call('HLEN', KEYS[1]) > 0
for at = 1, #ARGV, 4 do
  local id, unique, ttl, after = ARGV[at], ARGV[at + 1] == '1', ARGV[at + 2], tonumber(ARGV[at + 3])
  local word = '0'
  if redis.call('EXISTS', KEYS[key + 1]) == 1 then word = '1' end
  if word == '0' and cancels and redis.call('HEXISTS', KEYS[1], id) == 1 then word = '2' end
  key = key + 1
  local u = unique and KEYS[key + 1]
  if unique then key = key + 1 end
  for i = 1, after do
    if word == '0' or word == '4' then
      local state = string.match(redis.call('GETRANGE', KEYS[key + i], 0, 255), '"state":"(%a+)"')
      if not state then word = '4' elseif state ~= 'done' then word = '5' end
    end
  end
  key = key + after
  if word == '0' and u and not redis.call('SET', u, id, 'PX', ttl, 'NX') and redis.call('GET', u) ~= id then
    word = '3'
  end
  said[#said + 1] = word
end
return table.concat(said)
